// What direct.cu and direct_weight.cu share: how a thread reads its window of a plane into registers.
//
// HEIGHT x WIDTH elements, WIDTH a multiple of VECTOR; COLUMNS of them are used, from SHIFT on, the rest is there for alignment alone.

struct alignas(VECTOR * sizeof(element)) Load { element at[VECTOR]; };
struct alignas(STORE * sizeof(element)) Store { element at[STORE]; };

// The window that begins at (row, column), with zeros outside the plane.
DEVICE void read_window(real (&window)[HEIGHT][WIDTH], const element *RESTRICT plane, int row, int column, int in1, int in2, int vector) {
#if VECTOR > 1
    if (vector) {
        // No array of loads, no choice between one and zeros: either ends in scratch memory with compilers up to LLVM 16.
        UNROLL
        for (int r = 0; r < HEIGHT; r++) {
            UNROLL
            for (int v = 0; v < WIDTH / VECTOR; v++) {
                bool inside = (unsigned)(row + r) < (unsigned)in1 && (unsigned)(column + v * VECTOR) < (unsigned)in2;
                UNROLL
                for (int c = 0; c < VECTOR; c++) window[r][v * VECTOR + c] = 0;
                if (inside) {
                    const Load one = *(const Load *)&plane[(row + r) * in2 + column + v * VECTOR];
                    UNROLL
                    for (int c = 0; c < VECTOR; c++) window[r][v * VECTOR + c] = widen(one.at[c]);
                }
            }
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
