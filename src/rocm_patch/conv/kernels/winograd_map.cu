// Weight gradient: tiles of the map's gradient to points, [batch][filter][line][pixel] -> [point][filter][tile].

struct WinogradMap {
    const element *source;
    real *points;
    int filters, height, width;
    int first, tiles, pitch;
    Divisor plane, line;
    int total;
};

extern "C" __global__ void __launch_bounds__(128) winograd_map(WinogradMap p) {
    int at = blockIdx.x * 128 + threadIdx.x;
    if (at >= p.pitch) return;
    int filter = blockIdx.y, tile = p.first + at;
    bool live = at < p.tiles && tile < p.total;
    int image = divided(tile, p.plane), rest = tile - image * p.plane.value;
    int down = divided(rest, p.line), across = rest - down * p.line.value;
    int y0 = down * M, x0 = across * M;
    const element *RESTRICT source = p.source + ((long long)image * p.filters + filter) * p.height * p.width + (long long)y0 * p.width + x0;
    real half[M][ALPHA];
    UNROLL
    for (int i = 0; i < M; i++) {
        real line[M];
        bool inside = live && y0 + i < p.height;
        UNROLL
        for (int j = 0; j < M; j++) line[j] = inside && x0 + j < p.width ? widen(source[i * p.width + j]) : (real)0;
        map_points(line, half[i]);
    }
    real *RESTRICT to = p.points + (long long)filter * p.pitch + at;
    long long next = (long long)p.filters * p.pitch;
    UNROLL
    for (int j = 0; j < ALPHA; j++) {
        real line[M], out[ALPHA];
        UNROLL
        for (int i = 0; i < M; i++) line[i] = half[i][j];
        map_points(line, out);
        UNROLL
        for (int i = 0; i < ALPHA; i++) to[(i * ALPHA + j) * next] = out[i];
    }
}
