// One-dimensional Winograd transforms, applied along both axes by the kernels. M outputs a tile, window 3, ALPHA = M + 2 points
// (0, 1, -1, 2, -2, infinity for M = 4). Source: Lavin and Gray 2015, https://arxiv.org/abs/1509.09308; the weight gradient's are the same
// points with the roles of window and outputs exchanged (3 outputs, window M).

#define ALPHA (M + 2)
#define POINTS (ALPHA * ALPHA)

#if M == 4
DEVICE void data_points(const real *d, real *t, int step) {
    real a = d[4 * step] - 4 * d[2 * step], b = d[3 * step] - 4 * d[step];
    real e = d[4 * step] - d[2 * step], f = 2 * (d[3 * step] - d[step]);
    t[0] = 4 * d[0] - 5 * d[2 * step] + d[4 * step];
    t[1] = a + b;
    t[2] = a - b;
    t[3] = e + f;
    t[4] = e - f;
    t[5] = 4 * d[step] - 5 * d[3 * step] + d[5 * step];
}
DEVICE void window_points(const real *g, real *t) {
    real a = (real)(-1.0 / 6) * (g[0] + g[2]), b = (real)(-1.0 / 6) * g[1];
    real e = (real)(1.0 / 24) * g[0] + (real)(1.0 / 6) * g[2], f = (real)(1.0 / 12) * g[1];
    t[0] = (real)0.25 * g[0];
    t[1] = a + b;
    t[2] = a - b;
    t[3] = e + f;
    t[4] = e - f;
    t[5] = g[2];
}
DEVICE void outputs(const real *m, real *y) {
    real a = m[1] + m[2], b = m[1] - m[2], e = m[3] + m[4], f = m[3] - m[4];
    y[0] = m[0] + a + e;
    y[1] = b + 2 * f;
    y[2] = a + 4 * e;
    y[3] = b + 8 * f + m[5];
}
DEVICE void map_points(const real *g, real *t) {
    real a = (real)(-1.0 / 6) * (g[0] + g[2]), b = (real)(-1.0 / 6) * (g[1] + g[3]);
    real e = (real)(1.0 / 24) * (g[0] + 4 * g[2]), f = (real)(1.0 / 24) * (2 * g[1] + 8 * g[3]);
    t[0] = (real)0.25 * g[0];
    t[1] = a + b;
    t[2] = a - b;
    t[3] = e + f;
    t[4] = e - f;
    t[5] = g[3];
}
DEVICE void weight_outputs(const real *m, real *y) {
    real a = m[1] + m[2], b = m[1] - m[2], e = m[3] + m[4], f = m[3] - m[4];
    y[0] = m[0] + a + e;
    y[1] = b + 2 * f;
    y[2] = a + 4 * e + m[5];
}
#else
DEVICE void data_points(const real *d, real *t, int step) {
    t[0] = d[0] - d[2 * step];
    t[1] = d[step] + d[2 * step];
    t[2] = d[2 * step] - d[step];
    t[3] = d[3 * step] - d[step];
}
DEVICE void window_points(const real *g, real *t) {
    real a = (real)0.5 * (g[0] + g[2]), b = (real)0.5 * g[1];
    t[0] = g[0];
    t[1] = a + b;
    t[2] = a - b;
    t[3] = g[2];
}
DEVICE void outputs(const real *m, real *y) {
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] + m[3];
}
DEVICE void map_points(const real *g, real *t) {
    t[0] = g[0];
    t[1] = (real)0.5 * (g[0] + g[1]);
    t[2] = (real)0.5 * (g[0] - g[1]);
    t[3] = g[1];
}
DEVICE void weight_outputs(const real *m, real *y) {
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2];
    y[2] = m[1] + m[2] + m[3];
}
#endif
