// Which levels this processor has: asked of a small library of its own before the kernels are built, and of them in use.

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

extern "C" {
int protein_lm_supports_avx2() {
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
    return 0;
#endif
}
int protein_lm_supports_avx512() {
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512cd");
#else
    return 0;
#endif
}
int protein_lm_supports_avx512_bf16() {
#if defined(__x86_64__)
    return protein_lm_supports_avx512() && __builtin_cpu_supports("avx512bf16");
#else
    return 0;
#endif
}
// The system must also have allowed this process to use the tiles, which this asks for.
int protein_lm_supports_amx_bf16() {
#if defined(__x86_64__) && defined(__linux__)
    unsigned a, b, c, d;
    const bool has_tiles = __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 22 & 1) && (d >> 24 & 1);
    return protein_lm_supports_avx512_bf16() && has_tiles && syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
    return 0;
#endif
}
}
