// Weight gradient: sums [split][point][filter][channel] to windows [filter][channel][3][3]. The splits are added in order. ALPHA threads share a
// window, each takes a column of its points: small weights have too few windows to hide the reads otherwise.

struct WinogradWeight {
    const real *sums;
    element *result;
    int size, splits;  // filters * channels
};

#define WINDOWS 32

extern "C" __global__ void __launch_bounds__(WINDOWS * ALPHA) winograd_weight(WinogradWeight p) {
    __shared__ real half[3][ALPHA][WINDOWS];
    __shared__ element whole[WINDOWS * 9];
    int window = threadIdx.x % WINDOWS, j = threadIdx.x / WINDOWS;
    int first = blockIdx.x * WINDOWS, at = first + window;
    real column[ALPHA];
    UNROLL
    for (int i = 0; i < ALPHA; i++) column[i] = 0;
    if (at < p.size) {
        const real *RESTRICT from = p.sums + (long long)j * p.size + at;
        for (int split = 0; split < p.splits; split++) {
            UNROLL
            for (int i = 0; i < ALPHA; i++) column[i] += from[(long long)i * ALPHA * p.size];
            from += (long long)POINTS * p.size;
        }
    }
    real out[3];
    weight_outputs(column, out);
    UNROLL
    for (int i = 0; i < 3; i++) half[i][j][window] = out[i];
    __syncthreads();
    if (j < 3) {
        real line[ALPHA];
        UNROLL
        for (int i = 0; i < ALPHA; i++) line[i] = half[j][i][window];
        weight_outputs(line, out);
        UNROLL
        for (int i = 0; i < 3; i++) whole[window * 9 + j * 3 + i] = narrow(out[i]);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < WINDOWS * 9; i += WINDOWS * ALPHA)
        if (first * 9 + i < p.size * 9) p.result[(long long)first * 9 + i] = whole[i];
}
