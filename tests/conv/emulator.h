// Runs a kernel of conv/kernels on the CPU: the threads of one block are coroutines that switch at __syncthreads.
#include <cstdint>
#include <cstring>
#include <cmath>
#include <cstdlib>
#include <vector>
#include <ucontext.h>

#define EMULATED 1
#define DEVICE static inline
#define RESTRICT __restrict__
#define UNROLL
#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(...)
#define __forceinline__ inline
struct dim3 { unsigned int x, y, z; };
static dim3 threadIdx, blockIdx, blockDim, gridDim;
static unsigned int __umulhi(unsigned int a, unsigned int b) { return (unsigned int)(((uint64_t)a * b) >> 32); }

namespace emulator {
static const size_t STACK = 256 * 1024;
static ucontext_t scheduler;
static std::vector<ucontext_t> contexts;
static std::vector<char *> stacks;
static std::vector<char> done;
static std::vector<unsigned int> waited;  // how many barriers each thread has reached
static unsigned int current;
static void (*body)(const void *);
static const void *arguments;

static void entry() {
    body(arguments);
    done[current] = 1;
    swapcontext(&contexts[current], &scheduler);
}

static void place(unsigned int thread) {
    threadIdx.x = thread % blockDim.x;
    threadIdx.y = thread / blockDim.x % blockDim.y;
    threadIdx.z = thread / (blockDim.x * blockDim.y);
}

static int block() {
    unsigned int count = blockDim.x * blockDim.y * blockDim.z;
    while (stacks.size() < count) stacks.push_back((char *)malloc(STACK));
    contexts.resize(count);
    done.assign(count, 0);
    waited.assign(count, 0);
    for (unsigned int thread = 0; thread < count; thread++) {
        getcontext(&contexts[thread]);
        contexts[thread].uc_stack.ss_sp = stacks[thread];
        contexts[thread].uc_stack.ss_size = STACK;
        contexts[thread].uc_link = &scheduler;
        makecontext(&contexts[thread], entry, 0);
    }
    for (bool any = true; any;) {
        any = false;
        for (unsigned int thread = 0; thread < count; thread++) {
            if (done[thread]) continue;
            current = thread;
            place(thread);
            swapcontext(&scheduler, &contexts[thread]);
            any = any || !done[thread];
        }
        // A barrier that only some threads reach hangs a GPU: refuse it here.
        for (unsigned int thread = 1; thread < count; thread++)
            if (waited[thread] != waited[0] || done[thread] != done[0]) return 2;
    }
    return 0;
}
}  // namespace emulator

static void __syncthreads() {
    emulator::waited[emulator::current]++;
    swapcontext(&emulator::contexts[emulator::current], &emulator::scheduler);
}

#define EMULATE(name, Parameters)                                                                                      \
    static void name##_body(const void *arguments) { name(*(const Parameters *)arguments); }                           \
    extern "C" int emulate_##name(unsigned int gx, unsigned int gy, unsigned int gz, unsigned int bx, unsigned int by, \
                                  unsigned int bz, const void *arguments) {                                            \
        emulator::body = name##_body;                                                                                  \
        emulator::arguments = arguments;                                                                               \
        blockDim = {bx, by, bz};                                                                                       \
        gridDim = {gx, gy, gz};                                                                                        \
        for (unsigned int z = 0; z < gz; z++)                                                                          \
            for (unsigned int y = 0; y < gy; y++)                                                                      \
                for (unsigned int x = 0; x < gx; x++) {                                                                \
                    blockIdx = {x, y, z};                                                                              \
                    if (int wrong = emulator::block()) return wrong;                                                   \
                }                                                                                                      \
        return 0;                                                                                                      \
    }
