// Forward and data gradient where few channels meet: depthwise, small groups, thin stems, 1-D filters. A thread owns ROWS x WIDE results
// of FILTERS planes and reads its window of each source plane into registers once; there is no tile to fill and nothing to wait for.
//
// BACK 0: result o reads inputs o*STEP + low + a*DELTA (a data gradient of step 1 is this with the taps from the last to the first).
// BACK 1: data gradient of a step: result o reads inputs (o + padding - a*DELTA) / STEP where that divides; ROWS and WIDE are multiples
// of the step, so which taps meet which results is known when this is compiled.
// Taps are taken SPAN1 x SPAN2 at a time (CHUNKED: a kernel has more than that). STAGED: a block serves one group, whose weights lie in
// local memory as [source][tap][filter]; else every thread fetches the weights of its own plane, from the last to the first if FLIP.
// DEPTH: three dimensions.

struct Direct {
    const element *source, *weight, *bias;
    element *output;
    int items;                        // threads that have work: of a group (STAGED) or of all
    int groups, sources, sinks, tiles;  // of a group: planes read, planes written, the latter in tiles of FILTERS
    int in0, in1, in2, out0, out1, out2;
    int low0, low1, low2;             // first input of the window of result 0; low2 rounded down to VECTOR
    int move1, move2;                 // of the window from one span of taps to the next
    int kernel0, kernel1, kernel2, step0, delta0, padding0;
    int padded1, padded2;             // kernel size rounded up to whole spans
    int weight_group, weight_sink, weight_source, weight_first, weight_step;
    int vector_in;
    Divisor rows, columns, depth, tiles_, groups_, padded12, padded2_;
};

#if BACK
#define MEETS(o, a, PHASE, STEP, DELTA) (((o) + PHASE - (a) * DELTA) % STEP == 0)
#define AT(o, a, PHASE, STEP, DELTA, LOW) (((o) + PHASE - (a) * DELTA) / STEP - (LOW))
#define FROM(o, STEP) ((o) / STEP)
#else
#define MEETS(o, a, PHASE, STEP, DELTA) true
#define AT(o, a, PHASE, STEP, DELTA, LOW) ((o) * STEP + (a) * DELTA)
#define FROM(o, STEP) ((o) * STEP)
#endif

extern "C" __global__ void __launch_bounds__(THREADS) direct(Direct p) {
    int item = blockIdx.x * THREADS + threadIdx.x;
#if STAGED
    __shared__ ALIGNED real weights[ROOM];
    const int group = blockIdx.y / p.tiles, tile = blockIdx.y - group * p.tiles;
    {
        const element *RESTRICT weight = p.weight + group * p.weight_group;
        const int padded = p.padded12.value, count = p.sources * p.kernel0 * padded * FILTERS;
        for (int slot = threadIdx.x; slot < count; slot += THREADS) {
            int sink = tile * FILTERS + slot % FILTERS;
            int deep = divided(slot / FILTERS, p.padded12), rest = slot / FILTERS - deep * padded;
            int source = deep / p.kernel0, tap0 = deep - source * p.kernel0;
            int tap1 = divided(rest, p.padded2_), tap2 = rest - tap1 * p.padded2;
            int tap = (tap0 * p.kernel1 + tap1) * p.kernel2 + tap2;
            bool real_tap = sink < p.sinks && tap1 < p.kernel1 && tap2 < p.kernel2;
            weights[slot] = real_tap ? widen(weight[sink * p.weight_sink + source * p.weight_source + p.weight_first + tap * p.weight_step]) : (real)0;
        }
    }
    __syncthreads();
#endif
    if (item >= p.items) return;
    int plane = divided(item, p.columns);
    const int column = (item - plane * p.columns.value) * WIDE;
    int row = plane;
    plane = divided(plane, p.rows);
    row = (row - plane * p.rows.value) * ROWS;
#if DEPTH
    int o0 = plane;
    plane = divided(plane, p.depth);
    o0 -= plane * p.depth.value;
#endif
#if STAGED
    const int batch = plane;
#else
    int tile = plane;
    plane = divided(plane, p.tiles_);
    tile -= plane * p.tiles;
    const int batch = divided(plane, p.groups_), group = plane - batch * p.groups;
    const element *RESTRICT weight = p.weight + group * p.weight_group + tile * FILTERS * p.weight_sink + p.weight_first;
#endif
    const int in_pixels = p.in0 * p.in1 * p.in2, out_pixels = p.out0 * p.out1 * p.out2;
    const element *RESTRICT from = p.source + (batch * p.groups + group) * p.sources * in_pixels;

    real sums[FILTERS][ROWS][WIDE];
    UNROLL
    for (int f = 0; f < FILTERS; f++) {
        UNROLL
        for (int i = 0; i < ROWS; i++) {
            UNROLL
            for (int j = 0; j < WIDE; j++) sums[f][i][j] = 0;
        }
    }
    for (int source = 0; source < p.sources; source++, from += in_pixels) {
#if DEPTH
        for (int tap0 = 0; tap0 < p.kernel0; tap0++) {
#if BACK
        int at0 = o0 + p.padding0 - tap0 * p.delta0;
        if (at0 % p.step0) continue;
        at0 /= p.step0;
#else
        int at0 = o0 * p.step0 + p.low0 + tap0 * p.delta0;
#endif
        if ((unsigned)at0 >= (unsigned)p.in0) continue;
        const element *RESTRICT image = from + at0 * p.in1 * p.in2;
#else
        const int tap0 = 0;
        const element *RESTRICT image = from;
#endif
#if CHUNKED
#if BACK
        for (int tap1 = 0, row_in = FROM(row, STEP1) + p.low1; tap1 < p.kernel1; tap1 += SPAN1, row_in += p.move1) {
#else
        int tap1 = 0, row_in = row * STEP1 + p.low1;
        const int above = -(row_in + HEIGHT - 1);  // spans that lie before the first line are left out, and those after the last
        if (above > 0) {
            const int left_out = (above + SPAN1 * DELTA1 - 1) / (SPAN1 * DELTA1);
            tap1 = left_out * SPAN1;
            row_in += left_out * p.move1;
        }
        for (; tap1 < p.kernel1 && row_in < p.in1; tap1 += SPAN1, row_in += p.move1) {
#endif
        for (int tap2 = 0, column_in = FROM(column, STEP2) + p.low2; tap2 < p.kernel2; tap2 += SPAN2, column_in += p.move2) {
        const int pitch = p.padded2;
#else
        const int tap1 = 0, tap2 = 0, row_in = FROM(row, STEP1) + p.low1, column_in = FROM(column, STEP2) + p.low2, pitch = SPAN2;
#endif
        real window[HEIGHT][WIDTH];
        read_window(window, image, row_in, column_in, p.in1, p.in2, p.vector_in);
#if STAGED
        const real *own = &weights[(((source * p.kernel0 + tap0) * (CHUNKED ? p.padded1 : SPAN1) + tap1) * pitch + tap2) * FILTERS];
#endif
        UNROLL
        for (int a = 0; a < SPAN1; a++) {
            UNROLL
            for (int b = 0; b < SPAN2; b++) {
                real each[FILTERS];
#if STAGED
                UNROLL
                for (int f = 0; f < FILTERS; f += 4) {
                    real4 four = *(const real4 *)&own[(a * pitch + b) * FILTERS + f];
                    each[f] = four.x; each[f + 1] = four.y; each[f + 2] = four.z; each[f + 3] = four.w;
                }
#else
                // Distances that the compiler knows: as numbers found at launch they would fill the scalar registers.
                const int place = (tap0 * (CHUNKED ? p.kernel1 : SPAN1) + tap1 + a) * (CHUNKED ? p.kernel2 : SPAN2) + tap2 + b;
                const int tap = (FLIP ? -place : place) + source * p.weight_source;
                UNROLL
                for (int f = 0; f < FILTERS; f++) {
                    bool inside = FILTERS == 1 || tile * FILTERS + f < p.sinks;
                    if (CHUNKED) inside = inside && tap1 + a < p.kernel1 && tap2 + b < p.kernel2;
                    each[f] = widen(inside ? weight[f * p.weight_sink + tap] : narrow(0));
                }
#endif
                UNROLL
                for (int i = 0; i < ROWS; i++) {
                    if (!MEETS(i, a, PHASE1, STEP1, DELTA1)) continue;
                    UNROLL
                    for (int j = 0; j < WIDE; j++) {
                        if (!MEETS(j, b, PHASE2, STEP2, DELTA2)) continue;
                        real value = window[AT(i, a, PHASE1, STEP1, DELTA1, LOW1)][SHIFT + AT(j, b, PHASE2, STEP2, DELTA2, LOW2)];
                        UNROLL
                        for (int f = 0; f < FILTERS; f++) sums[f][i][j] += each[f] * value;
                    }
                }
            }
        }
#if CHUNKED
        }
        }
#endif
#if DEPTH
        }
#endif
    }

    UNROLL
    for (int f = 0; f < FILTERS; f++) {
        int sink = tile * FILTERS + f;
        if (FILTERS > 1 && sink >= p.sinks) continue;
        sink += group * p.sinks;
        const real plus = p.bias ? widen(p.bias[sink]) : (real)0;
        element *RESTRICT output = p.output + (batch * p.groups * p.sinks + sink) * out_pixels;
#if DEPTH
        output += o0 * p.out1 * p.out2;
#endif
        UNROLL
        for (int i = 0; i < ROWS; i++) {
            if (row + i >= p.out1) continue;
            element *RESTRICT line = output + (row + i) * p.out2 + column;
            UNROLL
            for (int v = 0; v < WIDE; v += STORE) {
                Store all;
                UNROLL
                for (int c = 0; c < STORE; c++) all.at[c] = narrow(sums[f][i][v + c] + plus);
                if (column + v < p.out2) *(Store *)&line[v] = all;
            }
        }
    }
}
