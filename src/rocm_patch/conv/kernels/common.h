// What CUDA, HIP and the emulator of the tests share. One parameter structure by value per kernel, so that a launch is one copy.

// PARAMETERS(type, name): the kernel's parameter where the driver put it. An index that is not known at compile time makes clang 16 copy the whole
// structure into scratch memory otherwise.
// STORE_NEXT(more): whether to store for the next step; true also after the last one, where it is of no use and no harm. clang moves the multiply-adds
// past such a branch, the reads of local memory stay before it, and a whole step's fragments fill the registers (256 and 126 spilled instead of 122 on
// gfx1010). nvcc without the branch stores, and so waits for global memory, among the multiply-adds: 39 TFLOP/s instead of 45 on an H200.
#if defined(EMULATED)
// The emulator's own header comes first and defines threadIdx and the rest.
#define PARAMETERS(type, name) name
#define STORE_NEXT(more) true
#elif defined(__HIPCC_RTC__) || defined(__HIP__)
#define DEVICE __device__ __forceinline__
#define RESTRICT __restrict__
#define UNROLL _Pragma("unroll")
#define PARAMETERS(type, name) (*(const type *)__builtin_amdgcn_kernarg_segment_ptr())
#define STORE_NEXT(more) true
#else
#define PARAMETERS(type, name) name
#define STORE_NEXT(more) (more)
#define DEVICE __device__ __forceinline__
#define RESTRICT __restrict__
#define UNROLL _Pragma("unroll")
#endif

#define ALIGNED __attribute__((aligned(32)))

// ELEMENT: 0 float, 1 half, 2 bfloat16, 3 double. Sums are kept in float, or in double for double.
#ifndef ELEMENT
#define ELEMENT 0
#endif

#if ELEMENT == 0
typedef float element;
typedef float real;
DEVICE real widen(element value) { return value; }
DEVICE element narrow(real value) { return value; }
#elif ELEMENT == 3
typedef double element;
typedef double real;
DEVICE real widen(element value) { return value; }
DEVICE element narrow(real value) { return value; }
#elif ELEMENT == 1
typedef float real;
#if defined(EMULATED) || defined(__HIPCC_RTC__) || defined(__HIP__)
typedef _Float16 element;
DEVICE real widen(element value) { return (float)value; }
DEVICE element narrow(real value) { return (_Float16)value; }
#else
struct element { unsigned short bits; };
DEVICE real widen(element value) { float wide; asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits)); return wide; }
DEVICE element narrow(real value) { element short_; asm("cvt.rn.f16.f32 %0, %1;" : "=h"(short_.bits) : "f"(value)); return short_; }
#endif
#else
// bfloat16 is the upper half of a float; rounding to nearest even by hand, NaN kept.
typedef float real;
struct element { unsigned short bits; };
DEVICE real widen(element value) {
    union { unsigned int bits; float value; } wide;
    wide.bits = (unsigned int)value.bits << 16;
    return wide.value;
}
DEVICE element narrow(real value) {
    union { float value; unsigned int bits; } wide;
    wide.value = value;
    element short_;
    if ((wide.bits & 0x7fffffffu) > 0x7f800000u) short_.bits = (unsigned short)((wide.bits >> 16) | 0x40u);
    else short_.bits = (unsigned short)((wide.bits + 0x7fffu + ((wide.bits >> 16) & 1u)) >> 16);
    return short_;
}
#endif

struct alignas(4 * sizeof(real)) real4 { real x, y, z, w; };
struct alignas(4 * sizeof(element)) element4 { element x, y, z, w; };

DEVICE real4 widen4(element4 value) {
    real4 wide;
    wide.x = widen(value.x); wide.y = widen(value.y); wide.z = widen(value.z); wide.w = widen(value.w);
    return wide;
}

// Division of a number below 2^31 by a divisor that is known at launch: quotient = high half of number * magic, shifted.
// Granlund and Montgomery 1994, https://doi.org/10.1145/178243.178249; the pair is computed in conv/launch.py.
struct Divisor { unsigned int value, magic, shift; };

DEVICE unsigned int divided(unsigned int number, Divisor by) {
    return (__umulhi(number, by.magic) + number) >> by.shift;
}
