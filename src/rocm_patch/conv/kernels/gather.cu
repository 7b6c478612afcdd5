// Implicit GEMM: rows are output channels, columns are output pixels, the reduction runs over taps and input channels.
//
// Forward and data gradient are the same gather. Each output pixel o reads the input at o * step + base + tap * delta; a data gradient
// with a stride splits the image into phases (one for each remainder of the stride), and in each phase only some taps take part.
// Weights come packed as [tap][channel][row] (pack.cu), so that a block reads them in long runs.
//
// UNIFORM 2: one tap, no border, pixels in fours (a plain GEMM). 1: channels are a multiple of BK, so that a step of the reduction has
// one tap. 0: anything.

struct Phase {
    int size0, size1, size2;     // output pixels
    int base0, base1, base2;     // input coordinate of output 0 at tap 0
    int taps0, taps1, taps2;
    int weights;                 // where the packed weights of this phase begin, in elements
    int depth;                   // padded length of the reduction: rows of the packed weights
    int output;                  // where the output of this phase begins, in elements
    Divisor pixels, plane, line; // size0*size1*size2, size1*size2, size2
    Divisor taps12, taps2_;      // taps1*taps2, taps2
};

struct Gather {
    const element *input, *weight, *bias;
    element *output;
    real *partial;
    int batch, rows, rows_padded, channels, groups, splits;
    int in0, in1, in2;
    int in_batch, in_channel, in_line0, in_line1;  // strides in elements; the last dimension is dense
    int step0, step1, step2;
    int delta0, delta1, delta2;
    int out_batch, out_row, out0, out1, out2;      // strides between outputs of a phase, in elements
    int fours;                                     // outputs can be written in fours
    int partial_size;
    Divisor channels_;
    Phase phase[PHASES];
};

#define LOADS_A (BK * BM / 4 / THREADS + (BK * BM / 4 % THREADS != 0))
#if UNIFORM == 2
#define COLUMNS 1
#define ACROSS (BN / 4)
#else
#define COLUMNS (BN > THREADS ? BN / THREADS : 1)
#define ACROSS (BN > THREADS ? THREADS : BN)
#endif
#define DOWN (THREADS / ACROSS)
#define LOADS_B (BK / DOWN)
static_assert(LOADS_B * DOWN == BK && DOWN * ACROSS == THREADS, "each thread brings the same share");

struct Columns { int origin[COLUMNS], at0[COLUMNS], at1[COLUMNS], at2[COLUMNS]; };

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) gather(Gather p) {
    __shared__ ALIGNED real tile_a[2][BK * BM];
    __shared__ ALIGNED real tile_b[2][BK * BN];
    const int thread = threadIdx.x;
    int slice = blockIdx.z;
    const int split = slice % p.splits;
    slice /= p.splits;
    const int group = slice % p.groups;
    const Phase &f = PARAMETERS(Gather, p).phase[slice / p.groups];
    const int pixels = f.pixels.value;
    const int total = p.batch * pixels;
    const int first_column = blockIdx.x * BN, first_row = blockIdx.y * BM;
    if (first_column >= total) return;  // phases differ in size; the whole block leaves

    // The columns whose inputs this thread brings.
    const int mine = thread % ACROSS, down_load = thread / ACROSS;
    Columns c;
    UNROLL
    for (int j = 0; j < COLUMNS; j++) {
#if UNIFORM == 2
        int column = first_column + mine * 4;
#else
        int column = first_column + mine + j * ACROSS;
#endif
        int image = divided(column, f.pixels), rest = column - image * pixels;
#if UNIFORM == 2
        c.origin[j] = column < total ? image * p.in_batch + rest : -1;
#else
        int o0 = divided(rest, f.plane);
        rest -= o0 * f.plane.value;
        int o1 = divided(rest, f.line), o2 = rest - o1 * f.line.value;
        c.at0[j] = o0 * p.step0 + f.base0;
        c.at1[j] = o1 * p.step1 + f.base1;
        // An impossible coordinate stands for a column beyond the end.
        c.at2[j] = column < total ? o2 * p.step2 + f.base2 : -(1 << 30);
        c.origin[j] = image * p.in_batch + c.at0[j] * p.in_line0 + c.at1[j] * p.in_line1 + c.at2[j];
#endif
    }
    const element *RESTRICT input = p.input + (long long)group * p.channels * p.in_channel;
    const element *RESTRICT weight = p.weight + f.weights + (long long)group * f.depth * p.rows_padded + first_row;

    const int chunks = f.depth / BK;
    const int from = (int)((long long)chunks * split / p.splits), until = (int)((long long)chunks * (split + 1) / p.splits);

#if UNIFORM == 1
    // The tap and the channel of the next step.
    int channel, tap0, tap1, tap2;
    {
        int k = from * BK;
        int tap = divided(k, p.channels_);
        channel = k - tap * p.channels;
        tap0 = divided(tap, f.taps12);
        tap -= tap0 * f.taps12.value;
        tap1 = divided(tap, f.taps2_);
        tap2 = tap - tap1 * f.taps2_.value;
    }
    int where[COLUMNS];
    bool inside[COLUMNS];
    bool fresh = true;
#endif
    element4 next_a[LOADS_A];
#if UNIFORM == 2
    element4 next_b[LOADS_B];
#else
    element next_b[COLUMNS][LOADS_B];
#endif

    auto load = [&](int chunk) {
        const int k0 = chunk * BK;
        UNROLL
        for (int i = 0; i < LOADS_A; i++) {
            int slot = thread + i * THREADS;
            if (BK * BM / 4 % THREADS == 0 || slot < BK * BM / 4)
                next_a[i] = *(const element4 *)&weight[(k0 + slot / (BM / 4)) * p.rows_padded + slot % (BM / 4) * 4];
        }
#if UNIFORM == 2
        UNROLL
        for (int i = 0; i < LOADS_B; i++) {
            int k = k0 + down_load + i * DOWN;
            if (c.origin[0] >= 0 && k < p.channels) next_b[i] = *(const element4 *)&input[c.origin[0] + k * p.in_channel];
            else next_b[i].x = next_b[i].y = next_b[i].z = next_b[i].w = narrow(0);
        }
#elif UNIFORM == 1
        if (fresh) {
            int move = tap0 * p.delta0 * p.in_line0 + tap1 * p.delta1 * p.in_line1 + tap2 * p.delta2;
            UNROLL
            for (int j = 0; j < COLUMNS; j++) {
                inside[j] = (unsigned)(c.at1[j] + tap1 * p.delta1) < (unsigned)p.in1 && (unsigned)(c.at2[j] + tap2 * p.delta2) < (unsigned)p.in2;
#if DIMENSIONS == 3
                inside[j] = inside[j] && (unsigned)(c.at0[j] + tap0 * p.delta0) < (unsigned)p.in0;
#endif
                where[j] = c.origin[j] + move + (channel + down_load) * p.in_channel;
            }
            fresh = false;
        }
        UNROLL
        for (int j = 0; j < COLUMNS; j++) {
            UNROLL
            for (int i = 0; i < LOADS_B; i++) next_b[j][i] = inside[j] ? input[where[j] + i * DOWN * p.in_channel] : narrow(0);
            where[j] += BK * p.in_channel;
        }
        channel += BK;
        if (channel >= p.channels) {
            channel = 0;
            fresh = true;
            if (++tap2 == f.taps2) {
                tap2 = 0;
                if (++tap1 == f.taps1) { tap1 = 0; tap0++; }
            }
        }
#else
        UNROLL
        for (int i = 0; i < LOADS_B; i++) {
            int k = k0 + down_load + i * DOWN;
            int tap = divided(k, p.channels_), channel = k - tap * p.channels;
            int tap0 = divided(tap, f.taps12);
            bool real_tap = tap0 < f.taps0;
            tap -= tap0 * f.taps12.value;
            int tap1 = divided(tap, f.taps2_), tap2 = tap - tap1 * f.taps2_.value;
            int move = tap0 * p.delta0 * p.in_line0 + tap1 * p.delta1 * p.in_line1 + tap2 * p.delta2 + channel * p.in_channel;
            UNROLL
            for (int j = 0; j < COLUMNS; j++) {
                bool inside = real_tap && (unsigned)(c.at0[j] + tap0 * p.delta0) < (unsigned)p.in0 &&
                              (unsigned)(c.at1[j] + tap1 * p.delta1) < (unsigned)p.in1 && (unsigned)(c.at2[j] + tap2 * p.delta2) < (unsigned)p.in2;
                next_b[j][i] = inside ? input[c.origin[j] + move] : narrow(0);
            }
        }
#endif
    };
    auto store = [&](int half) {
        UNROLL
        for (int i = 0; i < LOADS_A; i++) {
            int slot = thread + i * THREADS;
            if (BK * BM / 4 % THREADS == 0 || slot < BK * BM / 4) *(real4 *)&tile_a[half][slot * 4] = widen4(next_a[i]);
        }
#if UNIFORM == 2
        UNROLL
        for (int i = 0; i < LOADS_B; i++) *(real4 *)&tile_b[half][(down_load + i * DOWN) * BN + mine * 4] = widen4(next_b[i]);
#else
        UNROLL
        for (int j = 0; j < COLUMNS; j++) {
            UNROLL
            for (int i = 0; i < LOADS_B; i++) tile_b[half][(down_load + i * DOWN) * BN + mine + j * ACROSS] = widen(next_b[j][i]);
        }
#endif
    };

    int across, down;
    place_thread(thread, across, down);
    Sums sums;
    clear(sums);
    if (from < until) {
        load(from);
        store(0);
    }
    __syncthreads();
    for (int chunk = from, half = 0; chunk < until; chunk++, half ^= 1) {
        bool more = chunk + 1 < until;
        if (more) load(chunk + 1);
        multiply(sums, tile_a[half], BM, tile_b[half], BN, across, down);
        if (STORE_NEXT(more)) store(half ^ 1);
        __syncthreads();
    }

    UNROLL
    for (int jg = 0; jg < GROUPS_N; jg++) {
        int column = first_column + jg * STRIDE_N + across * 4;
        int where[4];
        UNROLL
        for (int j = 0; j < 4; j++) {
            if (p.fours && j) continue;
            int image = divided(column + j, f.pixels), rest = column + j - image * pixels;
            if (p.fours) {
                where[j] = image * p.out_batch + rest;
            } else {
                int o0 = divided(rest, f.plane);
                rest -= o0 * f.plane.value;
                int o1 = divided(rest, f.line), o2 = rest - o1 * f.line.value;
                where[j] = f.output + image * p.out_batch + o0 * p.out0 + o1 * p.out1 + o2 * p.out2;
            }
        }
        UNROLL
        for (int i = 0; i < TM; i++) {
            int row = first_row + i / 4 * STRIDE_M + down * 4 + i % 4;
            if (row >= p.rows) continue;
            row += group * p.rows;
            const real *four = &sums.at[i][jg * 4];
            if (p.splits > 1) {
                real *RESTRICT partial = p.partial + (long long)split * p.partial_size + (long long)row * p.out_row;
                if (p.fours) {
                    if (column < total) { real4 all = {four[0], four[1], four[2], four[3]}; *(real4 *)&partial[where[0]] = all; }
                } else {
                    UNROLL
                    for (int j = 0; j < 4; j++) if (column + j < total) partial[where[j]] = four[j];
                }
            } else {
                element *RESTRICT output = p.output + (long long)row * p.out_row;
                real plus = p.bias ? widen(p.bias[row]) : (real)0;
                if (p.fours) {
                    if (column < total) {
                        element4 all = {narrow(four[0] + plus), narrow(four[1] + plus), narrow(four[2] + plus), narrow(four[3] + plus)};
                        *(element4 *)&output[where[0]] = all;
                    }
                } else {
                    UNROLL
                    for (int j = 0; j < 4; j++) if (column + j < total) output[where[j]] = narrow(four[j] + plus);
                }
            }
        }
    }
}
