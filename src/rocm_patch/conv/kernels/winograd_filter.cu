// Weights [filter][channel][3][3] to points [point][reduced][row], rows padded: what a GEMM reads in runs. A thread does one window.

struct WinogradFilter {
    const element *weight;
    real *points;
    int filters, channels, rows_padded, depth_padded;
    int flipped;  // data gradient: rows are channels, the window turned round
};

extern "C" __global__ void __launch_bounds__(128) winograd_filter(WinogradFilter p) {
    int row = blockIdx.x * 128 + threadIdx.x, reduced = blockIdx.y;
    if (row >= p.rows_padded) return;
    int rows = p.flipped ? p.channels : p.filters;
    const element *RESTRICT from = p.weight + (p.flipped ? (long long)reduced * p.channels + row : (long long)row * p.channels + reduced) * 9;
    real half[3][ALPHA];
    UNROLL
    for (int i = 0; i < 3; i++) {
        real line[3];
        UNROLL
        for (int j = 0; j < 3; j++) line[j] = row < rows ? widen(from[p.flipped ? 8 - (i * 3 + j) : i * 3 + j]) : (real)0;
        window_points(line, half[i]);
    }
    real *RESTRICT to = p.points + (long long)reduced * p.rows_padded + row;
    long long next = (long long)p.depth_padded * p.rows_padded;
    UNROLL
    for (int j = 0; j < ALPHA; j++) {
        real line[3] = {half[0][j], half[1][j], half[2][j]}, out[ALPHA];
        window_points(line, out);
        UNROLL
        for (int i = 0; i < ALPHA; i++) to[(i * ALPHA + j) * next] = out[i];
    }
}
