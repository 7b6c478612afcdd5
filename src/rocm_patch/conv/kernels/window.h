// What direct.cu and direct_weight.cu share: how a thread reads its window of a plane into registers.
//
// HEIGHT x WIDTH elements, WIDTH a multiple of VECTOR; COLUMNS of them are used, from SHIFT on, the rest is there for alignment alone.

struct alignas(VECTOR * sizeof(element)) Load { element at[VECTOR]; };
struct alignas(STORE * sizeof(element)) Store { element at[STORE]; };

// The window that begins at (row, column), with zeros outside the plane.
DEVICE void read_window(real (&window)[HEIGHT][WIDTH], const element *RESTRICT plane, int row, int column, int in1, int in2, int vector) {
#if VECTOR > 1
    if (vector) {
        Load loads[HEIGHT][WIDTH / VECTOR];
        UNROLL
        for (int r = 0; r < HEIGHT; r++) {
            UNROLL
            for (int v = 0; v < WIDTH / VECTOR; v++) {
                bool inside = (unsigned)(row + r) < (unsigned)in1 && (unsigned)(column + v * VECTOR) < (unsigned)in2;
                Load zero;
                UNROLL
                for (int c = 0; c < VECTOR; c++) zero.at[c] = narrow(0);
                loads[r][v] = zero;
                if (inside) loads[r][v] = *(const Load *)&plane[(row + r) * in2 + column + v * VECTOR];
            }
        }
        UNROLL
        for (int r = 0; r < HEIGHT; r++) {
            UNROLL
            for (int c = 0; c < WIDTH; c++) window[r][c] = widen(loads[r][c / VECTOR].at[c % VECTOR]);
        }
        return;
    }
#endif
    UNROLL
    for (int r = 0; r < HEIGHT; r++) {
        UNROLL
        for (int c = SHIFT; c < SHIFT + COLUMNS; c++) {
            bool inside = (unsigned)(row + r) < (unsigned)in1 && (unsigned)(column + c) < (unsigned)in2;
            window[r][c] = widen(inside ? plane[(row + r) * in2 + column + c] : narrow(0));
        }
    }
}
