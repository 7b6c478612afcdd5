// The heart of every GEMM here: a block owns BM x BN sums, a thread TM x TN of them, BK steps of the reduction lie in local memory.
// No warp is assumed: the order of threads below only keeps the reads of local memory free of conflicts, on 32 lanes and on 64.

#define THREADS_X (BN / TN)
#define THREADS_Y (BM / TM)
#define THREADS (THREADS_X * THREADS_Y)
#define GROUPS_M (TM / 4)
#define GROUPS_N (TN / 4)
#define STRIDE_M (BM / GROUPS_M)
#define STRIDE_N (BN / GROUPS_N)

struct Sums { real at[TM][TN]; };

DEVICE void place_thread(int thread, int &across, int &down) {
#if THREADS_X % 8 == 0 && THREADS_Y % 4 == 0
    // 8 x 4 threads side by side read 8 and 4 different groups of four numbers: one pass each.
    int part = thread / 32, inside = thread % 32;
    across = part % (THREADS_X / 8) * 8 + inside % 8;
    down = part / (THREADS_X / 8) * 4 + inside / 8;
#else
    across = thread % THREADS_X;
    down = thread / THREADS_X;
#endif
}

DEVICE void clear(Sums &sums) {
    UNROLL
    for (int i = 0; i < TM; i++) {
        UNROLL
        for (int j = 0; j < TN; j++) sums.at[i][j] = 0;
    }
}

// rows: [BK][row_pitch], columns: [BK][column_pitch]
DEVICE void multiply(Sums &sums, const real *RESTRICT rows, int row_pitch, const real *RESTRICT columns, int column_pitch, int across, int down) {
    UNROLL
    for (int k = 0; k < BK; k++) {
        real a[TM], b[TN];
        UNROLL
        for (int i = 0; i < GROUPS_M; i++) {
            real4 four = *(const real4 *)&rows[k * row_pitch + i * STRIDE_M + down * 4];
            a[4 * i] = four.x; a[4 * i + 1] = four.y; a[4 * i + 2] = four.z; a[4 * i + 3] = four.w;
        }
        UNROLL
        for (int j = 0; j < GROUPS_N; j++) {
            real4 four = *(const real4 *)&columns[k * column_pitch + j * STRIDE_N + across * 4];
            b[4 * j] = four.x; b[4 * j + 1] = four.y; b[4 * j + 2] = four.z; b[4 * j + 3] = four.w;
        }
        UNROLL
        for (int i = 0; i < TM; i++) {
            UNROLL
            for (int j = 0; j < TN; j++) sums.at[i][j] += a[i] * b[j];
        }
    }
}
