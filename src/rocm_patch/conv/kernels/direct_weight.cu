// Weight gradient where few channels meet: a block owns FILTERS filters of one group, one channel and SPAN1 x SPAN2 taps, and its threads
// walk over ROWS x WIDE blocks of the map with all those sums in registers. What the threads found is added in local memory, always in
// the same order; the batch is cut into splits whose sums reduce.cu adds.

struct DirectWeight {
    const element *image, *map;
    real *partial;  // [split][filter of all groups][channel][tap]
    int items, splits, size;  // blocks of the map in one plane of all the batch; elements of the result
    int groups, channels, filters, tiles;  // of a group
    int in0, in1, in2, out0, out1, out2;
    int low0, low1, low2, move1, move2;
    int kernel0, kernel1, kernel2, step0, delta0, chunks1, chunks2;
    int vector_in, vector_map;
    Divisor rows, columns, depth;
};

#define TAPS (SPAN1 * SPAN2)
#define PARTS 4
#define PITCH (THREADS + PARTS)

extern "C" __global__ void __launch_bounds__(THREADS) direct_weight(DirectWeight p) {
    __shared__ real found[TAPS * PITCH];
    const int thread = threadIdx.x;
    int chunk = blockIdx.x / p.channels;
    const int channel = blockIdx.x - chunk * p.channels;
    const int chunk2 = chunk % p.chunks2, chunk1 = chunk / p.chunks2 % p.chunks1, tap0 = chunk / p.chunks2 / p.chunks1;
    const int group = blockIdx.y / p.tiles, filter0 = (blockIdx.y - group * p.tiles) * FILTERS;
    const int split = blockIdx.z;
    const int in_pixels = p.in0 * p.in1 * p.in2, out_pixels = p.out0 * p.out1 * p.out2;
    const element *RESTRICT image = p.image + (group * p.channels + channel) * in_pixels;
    const element *RESTRICT map = p.map + (group * p.filters + filter0) * out_pixels;
    const int from = (int)((long long)p.items * split / p.splits), until = (int)((long long)p.items * (split + 1) / p.splits);
    const int low1 = p.low1 + chunk1 * p.move1, low2 = p.low2 + chunk2 * p.move2;

    real sums[FILTERS][TAPS];
    UNROLL
    for (int f = 0; f < FILTERS; f++) {
        UNROLL
        for (int t = 0; t < TAPS; t++) sums[f][t] = 0;
    }
    for (int item = from + thread; item < until; item += THREADS) {
        int batch = divided(item, p.columns);
        const int column = (item - batch * p.columns.value) * WIDE;
        int row = batch;
        batch = divided(batch, p.rows);
        row = (row - batch * p.rows.value) * ROWS;
#if DEPTH
        int o0 = batch;
        batch = divided(batch, p.depth);
        o0 -= batch * p.depth.value;
        const int at0 = o0 * p.step0 + p.low0 + tap0 * p.delta0;
        if ((unsigned)at0 >= (unsigned)p.in0) continue;
        const element *RESTRICT plane = image + batch * p.groups * p.channels * in_pixels + at0 * p.in1 * p.in2;
        const element *RESTRICT gradient = map + batch * p.groups * p.filters * out_pixels + o0 * p.out1 * p.out2;
#else
        const element *RESTRICT plane = image + batch * p.groups * p.channels * in_pixels;
        const element *RESTRICT gradient = map + batch * p.groups * p.filters * out_pixels;
#endif
        real window[HEIGHT][WIDTH];
        read_window(window, plane, row * STEP1 + low1, column * STEP2 + low2, p.in1, p.in2, p.vector_in);
        UNROLL
        for (int f = 0; f < FILTERS; f++) {
            if (FILTERS > 1 && filter0 + f >= p.filters) continue;
            real value[ROWS][WIDE];
            UNROLL
            for (int i = 0; i < ROWS; i++) {
                const element *RESTRICT line = gradient + f * out_pixels + (row + i) * p.out2 + column;
                if (p.vector_map) {
                    UNROLL
                    for (int v = 0; v < WIDE; v += STORE) {
                        Store all;
                        UNROLL
                        for (int c = 0; c < STORE; c++) all.at[c] = narrow(0);
                        if (row + i < p.out1 && column + v < p.out2) all = *(const Store *)&line[v];
                        UNROLL
                        for (int c = 0; c < STORE; c++) value[i][v + c] = widen(all.at[c]);
                    }
                } else {
                    UNROLL
                    for (int j = 0; j < WIDE; j++) value[i][j] = widen(row + i < p.out1 && column + j < p.out2 ? line[j] : narrow(0));
                }
            }
            UNROLL
            for (int a = 0; a < SPAN1; a++) {
                UNROLL
                for (int b = 0; b < SPAN2; b++) {
                    UNROLL
                    for (int i = 0; i < ROWS; i++) {
                        UNROLL
                        for (int j = 0; j < WIDE; j++)
                            sums[f][a * SPAN2 + b] += value[i][j] * window[i * STEP1 + a * DELTA1][SHIFT + j * STEP2 + b * DELTA2];
                    }
                }
            }
        }
    }

    UNROLL
    for (int f = 0; f < FILTERS; f++) {
        if (f) __syncthreads();
        UNROLL
        for (int t = 0; t < TAPS; t++) found[t * PITCH + thread] = sums[f][t];
        __syncthreads();
        for (int slot = thread; slot < TAPS * PARTS; slot += THREADS) {
            real *part = &found[slot / PARTS * PITCH + slot % PARTS];
            real sum = 0;
            UNROLL
            for (int i = 0; i < THREADS; i += PARTS) sum += part[i];
            part[THREADS] = sum;
        }
        __syncthreads();
        for (int t = thread; t < TAPS; t += THREADS) {
            int tap1 = chunk1 * SPAN1 + t / SPAN2, tap2 = chunk2 * SPAN2 + t % SPAN2;
            if (filter0 + f >= p.filters || tap1 >= p.kernel1 || tap2 >= p.kernel2) continue;
            const real *part = &found[t * PITCH + THREADS];
            int tap = (tap0 * p.kernel1 + tap1) * p.kernel2 + tap2;
            int row = (group * p.filters + filter0 + f) * p.channels + channel;
            p.partial[(long long)split * p.size + (long long)row * p.kernel0 * p.kernel1 * p.kernel2 + tap] = (part[0] + part[1]) + (part[2] + part[3]);
        }
    }
}
