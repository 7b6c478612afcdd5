// Weight gradient: rows are filters, columns are (tap, channel), the reduction runs over all output pixels of the batch and is cut into
// splits so that a small result still fills the chip. Each split leaves its own sums; reduce.cu adds them, always in the same order.
//
// UNIFORM 2: one tap, no border, step 1 (a plain GEMM), pixels in fours. 1: channels are a multiple of BN: one tap a block. 0: anything.

struct Weight {
    const element *image, *map;
    real *partial;  // [split][group][filter][tap][channel]
    int batch, filters, channels, taps, groups, splits, chunks;
    int in0, in1, in2;
    int in_batch, in_channel, in_line0, in_line1;
    int map_batch, map_filter;
    int step0, step1, step2, base0, base1, base2, delta0, delta1, delta2;
    Divisor pixels, plane, line, channels_, taps12, taps2;
};

#define PITCH_M (BM + 4)
#define PITCH_N (BN + 4)
#if UNIFORM == 2
#define ACROSS (BK / 4)
#else
#define ACROSS BK
#endif
#define DOWN (THREADS / ACROSS)
#define LOADS_A (BM / DOWN)
#define LOADS_B (BN / DOWN)
static_assert(LOADS_A * DOWN == BM && LOADS_B * DOWN == BN && DOWN * ACROSS == THREADS, "each thread brings the same share");

extern "C" __global__ void __launch_bounds__(THREADS, RESIDENT) weight(Weight p) {
    __shared__ ALIGNED real tile_a[2][BK * PITCH_M];
    __shared__ ALIGNED real tile_b[2][BK * PITCH_N];
    const int thread = threadIdx.x;
    const int split = blockIdx.z % p.splits, group = blockIdx.z / p.splits;
    const int first_row = blockIdx.y * BM, first_column = blockIdx.x * BN;
    const int width = p.taps * p.channels;
    const int pixels = p.pixels.value, total = p.batch * pixels;
    const int mine = thread % ACROSS, down_load = thread / ACROSS;
    const element *RESTRICT image = p.image + (long long)group * p.channels * p.in_channel;
    const element *RESTRICT map = p.map + (long long)(group * p.filters + first_row) * p.map_filter;
    const int from = (int)((long long)p.chunks * split / p.splits), until = (int)((long long)p.chunks * (split + 1) / p.splits);

#if UNIFORM == 1
    int move0, move1, move2, channel0;
    {
        int tap = divided(first_column, p.channels_);
        channel0 = first_column - tap * p.channels + down_load;
        move0 = divided(tap, p.taps12);
        tap -= move0 * p.taps12.value;
        move1 = divided(tap, p.taps2);
        move2 = (tap - move1 * p.taps2.value) * p.delta2 + p.base2;
        move0 = move0 * p.delta0 + p.base0;
        move1 = move1 * p.delta1 + p.base1;
    }
#elif UNIFORM == 0
    int offset[LOADS_B], moves[LOADS_B];  // element offset of the column, and its coordinates packed 10 bits each, beyond 511 not taken (guarded)
    UNROLL
    for (int i = 0; i < LOADS_B; i++) {
        int column = first_column + down_load + i * DOWN;
        int tap = divided(column, p.channels_), channel = column - tap * p.channels;
        int tap0 = divided(tap, p.taps12);
        tap -= tap0 * p.taps12.value;
        int tap1 = divided(tap, p.taps2), tap2 = tap - tap1 * p.taps2.value;
        tap0 *= p.delta0; tap1 *= p.delta1; tap2 *= p.delta2;
        offset[i] = channel * p.in_channel + tap0 * p.in_line0 + tap1 * p.in_line1 + tap2;
        moves[i] = column < width ? tap0 << 20 | tap1 << 10 | tap2 : -1;
    }
#endif
#if UNIFORM == 2
    element4 next_a[LOADS_A], next_b[LOADS_B];
#else
    element next_a[LOADS_A], next_b[LOADS_B];
#endif

    auto load = [&](int chunk) {
#if UNIFORM == 2
        int r = chunk * BK + mine * 4;
        int batch = divided(r, p.pixels), pixel = r - batch * pixels;
        bool live = r < total;
        UNROLL
        for (int i = 0; i < LOADS_A; i++) {
            int row = down_load + i * DOWN;
            // No choice between a place and a constant: clang would put the constant into scratch memory to have a place for it.
            if (live && first_row + row < p.filters) next_a[i] = *(const element4 *)&map[batch * p.map_batch + row * p.map_filter + pixel];
            else next_a[i].x = next_a[i].y = next_a[i].z = next_a[i].w = narrow(0);
        }
        UNROLL
        for (int i = 0; i < LOADS_B; i++) {
            int column = first_column + down_load + i * DOWN;
            if (live && column < width) next_b[i] = *(const element4 *)&image[batch * p.in_batch + column * p.in_channel + pixel];
            else next_b[i].x = next_b[i].y = next_b[i].z = next_b[i].w = narrow(0);
        }
#else
        int r = chunk * BK + mine;
        int batch = divided(r, p.pixels), pixel = r - batch * pixels;
        int o0 = divided(pixel, p.plane), rest = pixel - o0 * p.plane.value;
        int o1 = divided(rest, p.line), o2 = rest - o1 * p.line.value;
        bool live = r < total;
        const element *RESTRICT from_map = map + batch * p.map_batch + pixel;
        UNROLL
        for (int i = 0; i < LOADS_A; i++) {
            int row = down_load + i * DOWN;
            next_a[i] = live && first_row + row < p.filters ? from_map[row * p.map_filter] : narrow(0);
        }
#if UNIFORM == 1
        int at0 = o0 * p.step0 + move0, at1 = o1 * p.step1 + move1, at2 = o2 * p.step2 + move2;
        bool inside = live && (unsigned)at0 < (unsigned)p.in0 && (unsigned)at1 < (unsigned)p.in1 && (unsigned)at2 < (unsigned)p.in2;
        const element *RESTRICT from_image = image + (batch * p.in_batch + at0 * p.in_line0 + at1 * p.in_line1 + at2 + channel0 * p.in_channel);
        UNROLL
        for (int i = 0; i < LOADS_B; i++) next_b[i] = inside ? from_image[i * DOWN * p.in_channel] : narrow(0);
#else
        int at0 = o0 * p.step0 + p.base0, at1 = o1 * p.step1 + p.base1, at2 = o2 * p.step2 + p.base2;
        int origin = batch * p.in_batch + at0 * p.in_line0 + at1 * p.in_line1 + at2;
        UNROLL
        for (int i = 0; i < LOADS_B; i++) {
            int move = moves[i];
            bool inside = live && move >= 0 && (unsigned)(at0 + (move >> 20)) < (unsigned)p.in0 &&
                          (unsigned)(at1 + (move >> 10 & 1023)) < (unsigned)p.in1 && (unsigned)(at2 + (move & 1023)) < (unsigned)p.in2;
            next_b[i] = inside ? image[origin + offset[i]] : narrow(0);
        }
#endif
#endif
    };
    auto store = [&](int half) {
#if UNIFORM == 2
        UNROLL
        for (int i = 0; i < LOADS_A; i++) {
            real *RESTRICT to = &tile_a[half][mine * 4 * PITCH_M + down_load + i * DOWN];
            to[0] = widen(next_a[i].x); to[PITCH_M] = widen(next_a[i].y); to[2 * PITCH_M] = widen(next_a[i].z); to[3 * PITCH_M] = widen(next_a[i].w);
        }
        UNROLL
        for (int i = 0; i < LOADS_B; i++) {
            real *RESTRICT to = &tile_b[half][mine * 4 * PITCH_N + down_load + i * DOWN];
            to[0] = widen(next_b[i].x); to[PITCH_N] = widen(next_b[i].y); to[2 * PITCH_N] = widen(next_b[i].z); to[3 * PITCH_N] = widen(next_b[i].w);
        }
#else
        UNROLL
        for (int i = 0; i < LOADS_A; i++) tile_a[half][mine * PITCH_M + down_load + i * DOWN] = widen(next_a[i]);
        UNROLL
        for (int i = 0; i < LOADS_B; i++) tile_b[half][mine * PITCH_N + down_load + i * DOWN] = widen(next_b[i]);
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
        multiply(sums, tile_a[half], PITCH_M, tile_b[half], PITCH_N, across, down);
        if (STORE_NEXT(more)) store(half ^ 1);
        __syncthreads();
    }

    real *RESTRICT partial = p.partial + ((long long)split * p.groups + group) * p.filters * width;
    UNROLL
    for (int i = 0; i < TM; i++) {
        int row = first_row + i / 4 * STRIDE_M + down * 4 + i % 4;
        if (row >= p.filters) continue;
        UNROLL
        for (int j = 0; j < TN; j++) {
            int column = first_column + j / 4 * STRIDE_N + across * 4 + j % 4;
            if (column < width) partial[(long long)row * width + column] = sums.at[i][j];
        }
    }
}
