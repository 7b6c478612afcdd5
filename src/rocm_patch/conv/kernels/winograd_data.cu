// Image tiles to points: [batch][channel][line][pixel] -> [point][channel][tile]. A thread does one tile of one channel.

struct WinogradData {
    const element *source;
    real *points;
    int channels, height, width, pad_height, pad_width;
    int first, tiles, pitch;  // of this piece: its first tile, its tiles, and elements from channel to channel
    Divisor plane, line;      // tiles of an image, of a line of tiles
    int total;                // tiles of the whole batch
};

extern "C" __global__ void __launch_bounds__(128) winograd_data(WinogradData p) {
    int at = blockIdx.x * 128 + threadIdx.x;
    if (at >= p.pitch) return;
    int channel = blockIdx.y, tile = p.first + at;
    real points[ALPHA][ALPHA];
    bool live = at < p.tiles && tile < p.total;
    int image = divided(tile, p.plane), rest = tile - image * p.plane.value;
    int down = divided(rest, p.line), across = rest - down * p.line.value;
    int y0 = down * M - p.pad_height, x0 = across * M - p.pad_width;
    const element *RESTRICT source = p.source + ((long long)image * p.channels + channel) * p.height * p.width + y0 * p.width + x0;
    UNROLL
    for (int i = 0; i < ALPHA; i++) {
        real line[ALPHA];
        bool inside = live && (unsigned)(y0 + i) < (unsigned)p.height;
        UNROLL
        for (int j = 0; j < ALPHA; j++) line[j] = inside && (unsigned)(x0 + j) < (unsigned)p.width ? widen(source[i * p.width + j]) : (real)0;
        data_points(line, points[i], 1);
    }
    real *RESTRICT to = p.points + (long long)channel * p.pitch + at;
    long long next = (long long)p.channels * p.pitch;
    UNROLL
    for (int j = 0; j < ALPHA; j++) {
        real column[ALPHA];
        data_points(&points[0][j], column, ALPHA);
        UNROLL
        for (int i = 0; i < ALPHA; i++) to[(i * ALPHA + j) * next] = column[i];
    }
}
