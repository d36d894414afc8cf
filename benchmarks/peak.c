/* The arithmetic peak of an x86 CPU: int8 dot products (VNNI) and f32 FMA, from registers, on so many threads.
   Prints both in operations per second, a multiply-add counted as two; 0 where the CPU lacks it. */
#include <immintrin.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define CHAINS 12 /* independent accumulators: more than latency times units */
#define STEPS 2000000L

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + 1e-9 * now.tv_nsec;
}

/* Twelve named registers: an array would be kept in memory. The empty asm keeps each step from being optimized away. */
#define ALL(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11)
#define DECLARE(i) sum sum##i = zero;
#define ADVANCE(i) sum##i = STEP(sum##i); __asm__ volatile("" : "+x"(sum##i));
#define LOOP(TYPE, SET)                              \
    typedef TYPE sum;                                \
    const sum zero = SET;                            \
    ALL(DECLARE)                                     \
    for (long step = 0; step < STEPS; step++) { ALL(ADVANCE) }

__attribute__((target("avx512f,avx512vnni,avx512bw"))) static void *vnni512(void *unused) {
    __m512i a = _mm512_set1_epi8(1), b = _mm512_set1_epi8(2);
#define STEP(x) _mm512_dpbusd_epi32(x, a, b)
    LOOP(__m512i, _mm512_setzero_si512())
#undef STEP
    return unused;
}
__attribute__((target("avx512f"))) static void *fma512(void *unused) {
    __m512 a = _mm512_set1_ps(1.0f), b = _mm512_set1_ps(1e-9f);
#define STEP(x) _mm512_fmadd_ps(a, b, x)
    LOOP(__m512, _mm512_setzero_ps())
#undef STEP
    return unused;
}
__attribute__((target("avx2,fma"))) static void *fma256(void *unused) {
    __m256 a = _mm256_set1_ps(1.0f), b = _mm256_set1_ps(1e-9f);
#define STEP(x) _mm256_fmadd_ps(a, b, x)
    LOOP(__m256, _mm256_setzero_ps())
#undef STEP
    return unused;
}
/* Without VNNI the exact way multiplies 16-bit halves: 16 products for each pair of instructions. */
__attribute__((target("avx2"))) static void *madd256(void *unused) {
    __m256i a = _mm256_set1_epi16(1), b = _mm256_set1_epi16(2);
#define STEP(x) _mm256_add_epi32(x, _mm256_madd_epi16(a, _mm256_xor_si256(b, x)))
    LOOP(__m256i, _mm256_setzero_si256())
#undef STEP
    return unused;
}

static double rate(void *(*kernel)(void *), int threads, double per_step) {
    double best = 0;
    for (int turn = 0; turn < 5; turn++) {
        pthread_t others[64];
        double began = seconds();
        for (int i = 0; i < threads; i++) pthread_create(&others[i], NULL, kernel, NULL);
        for (int i = 0; i < threads; i++) pthread_join(others[i], NULL);
        double found = per_step * CHAINS * STEPS * threads / (seconds() - began);
        if (found > best) best = found;
    }
    return best;
}

int main(int argc, char **argv) {
    int threads = argc > 1 ? atoi(argv[1]) : 1;
    if (threads < 1 || threads > 64) return 2;
    int wide = __builtin_cpu_supports("avx512f");
    double int8 = __builtin_cpu_supports("avx512vnni") ? rate(vnni512, threads, 128)
                  : __builtin_cpu_supports("avx2")     ? rate(madd256, threads, 32)
                                                       : 0;
    double fma = wide ? rate(fma512, threads, 32) : __builtin_cpu_supports("fma") ? rate(fma256, threads, 16) : 0;
    printf("%.6g %.6g\n", int8, fma);
    return 0;
}
