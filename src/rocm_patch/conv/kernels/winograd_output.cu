// Points of the product to the result: [point][row][tile] -> [batch][row][line][pixel], plus the bias. A thread does one tile of one row.

struct WinogradOutput {
    const real *points;
    const element *bias;
    element *result;
    int rows, height, width;
    int first, tiles, pitch;
    int fours;            // lines are a multiple of four: written in fours
    Divisor plane, line;
};

extern "C" __global__ void __launch_bounds__(128) winograd_output(WinogradOutput p) {
    int at = blockIdx.x * 128 + threadIdx.x;
    if (at >= p.tiles) return;
    int row = blockIdx.y, tile = p.first + at;
    const real *RESTRICT from = p.points + (long long)row * p.pitch + at;
    long long next = (long long)p.rows * p.pitch;
    real half[M][ALPHA];
    UNROLL
    for (int j = 0; j < ALPHA; j++) {
        real column[ALPHA], out[M];
        UNROLL
        for (int i = 0; i < ALPHA; i++) column[i] = from[(i * ALPHA + j) * next];
        outputs(column, out);
        UNROLL
        for (int i = 0; i < M; i++) half[i][j] = out[i];
    }
    int image = divided(tile, p.plane), rest = tile - image * p.plane.value;
    int down = divided(rest, p.line), across = rest - down * p.line.value;
    int y0 = down * M, x0 = across * M;
    real plus = p.bias ? widen(p.bias[row]) : (real)0;
    element *RESTRICT to = p.result + ((long long)image * p.rows + row) * p.height * p.width + (long long)y0 * p.width + x0;
    UNROLL
    for (int i = 0; i < M; i++) {
        if (y0 + i >= p.height) continue;
        real out[M];
        outputs(half[i], out);
#if M == 4
        if (p.fours) {
            element4 four = {narrow(out[0] + plus), narrow(out[1] + plus), narrow(out[2] + plus), narrow(out[3] + plus)};
            *(element4 *)&to[i * p.width] = four;
            continue;
        }
#endif
        UNROLL
        for (int j = 0; j < M; j++) if (x0 + j < p.width) to[i * p.width + j] = narrow(out[j] + plus);
    }
}
