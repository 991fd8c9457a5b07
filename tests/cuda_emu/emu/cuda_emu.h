// Force-included (-include) before every .cu file when it is compiled for the host by an ordinary
// C++ compiler. The toolkit's own headers supply types, bf16/fp16 arithmetic and API declarations;
// this file supplies only what nvcc adds: the qualifiers, the built-in variables, barriers, warp
// collectives, atomics, device math, the launch.
#pragma once
#define PUPIL_EMU 1
#define __shared__ static  // one block runs at a time, on one OS thread
#define __launch_bounds__(...)
#define __nanosleep(ns) ((void)(ns))

#include <cuda_runtime.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

namespace cudaemu {
void* dynamic_shared();
void barrier();
int barrier_reduce(int pred, int op);  // 0 and, 1 or, 2 count
void warp_sync(unsigned mask);
// All lanes named in mask deposit size bytes and get back the 32 slots.
const unsigned char (*warp_exchange(unsigned mask, const void* v, size_t size))[32];
unsigned lane_id();
bool lane_in(unsigned mask, unsigned lane);
void atomic_touch(const void* p, size_t size,
                  const void* pc);  // tells the checker about an atomic access
struct Param {
  const void* p;
  size_t offset, size;
  bool is_pointer;
};
cudaError_t launch(const cudaLaunchConfig_t& cfg, const void* kernel,
                   void (*thunk)(const void* kernel, const void* args), const void* args,
                   size_t args_size, const Param* params, int nparams);
}  // namespace cudaemu

extern uint3 threadIdx, blockIdx;  // rewritten at every fiber switch
extern dim3 blockDim, gridDim;
static constexpr int warpSize = 32;

// ---- launch: stands in for the toolkit's template of the same name, which erases the argument
// types
namespace cudaemu {
template <class... P, class... A>
cudaError_t launch_kernel_ex(const cudaLaunchConfig_t* cfg, void (*kernel)(P...), A&&... args) {
  static_assert((std::is_trivially_copyable_v<P> && ...), "kernel parameters are copied as bytes");
  using Args = std::tuple<P...>;
  Args t{static_cast<P>(std::forward<A>(args))...};  // copied now, as on a GPU
  Param params[sizeof...(P) + 1];
  int i = 0;
  std::apply(
      [&](auto&... a) {
        ((params[i++] = Param{&a, size_t(reinterpret_cast<char*>(&a) - reinterpret_cast<char*>(&t)),
                              sizeof a, std::is_pointer_v<std::remove_reference_t<decltype(a)>>}),
         ...);
      },
      t);
  return launch(
      *cfg, reinterpret_cast<const void*>(kernel),
      [](const void* k, const void* a) {
        std::apply(reinterpret_cast<void (*)(P...)>(const_cast<void*>(k)),
                   *static_cast<const Args*>(a));
      },
      &t, sizeof t, params, int(sizeof...(P)));
}
}  // namespace cudaemu
#define cudaLaunchKernelEx ::cudaemu::launch_kernel_ex
// ---- barriers and fences
#define __syncthreads() ::cudaemu::barrier()
inline int __syncthreads_and(int p) { return cudaemu::barrier_reduce(p, 0); }
inline int __syncthreads_or(int p) { return cudaemu::barrier_reduce(p, 1); }
inline int __syncthreads_count(int p) { return cudaemu::barrier_reduce(p, 2); }
inline void __syncwarp(unsigned m = 0xffffffffu) { cudaemu::warp_sync(m); }
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}

// ---- warp collectives
namespace cudaemu {
template <class T>
T from_lane(const unsigned char (*s)[32], unsigned lane) {
  T r;
  std::memcpy(&r, s[lane], sizeof(T));
  return r;
}
template <class T>
T shfl(unsigned mask, T v, int src) {  // src < 0: keep own value
  static_assert(sizeof(T) <= 16 && std::is_trivially_copyable_v<T>);
  auto s = warp_exchange(mask, &v, sizeof(T));
  return src >= 0 && lane_in(mask, unsigned(src)) ? from_lane<T>(s, unsigned(src)) : v;
}
}  // namespace cudaemu
template <class T>
T __shfl_sync(unsigned m, T v, int src, int w = 32) {
  int l = int(cudaemu::lane_id());
  return cudaemu::shfl(m, v, (l & ~(w - 1)) + (src & (w - 1)));
}
template <class T>
T __shfl_xor_sync(unsigned m, T v, int x, int w = 32) {
  int l = int(cudaemu::lane_id()), s = l ^ x;
  return cudaemu::shfl(m, v, s < (l & ~(w - 1)) + w ? s : -1);
}
template <class T>
T __shfl_down_sync(unsigned m, T v, unsigned d, int w = 32) {
  int l = int(cudaemu::lane_id()), s = l + int(d);
  return cudaemu::shfl(m, v, (l & (w - 1)) + int(d) < w ? s : -1);
}
template <class T>
T __shfl_up_sync(unsigned m, T v, unsigned d, int w = 32) {
  int l = int(cudaemu::lane_id());
  return cudaemu::shfl(m, v, (l & (w - 1)) - int(d) >= 0 ? l - int(d) : -1);
}
inline unsigned __ballot_sync(unsigned m, int p) {
  p = p != 0;
  auto s = cudaemu::warp_exchange(m, &p, sizeof p);
  unsigned r = 0;
  for (unsigned l = 0; l < 32; ++l)
    if ((m >> l & 1) && cudaemu::from_lane<int>(s, l)) r |= 1u << l;
  return r;
}
inline int __any_sync(unsigned m, int p) { return __ballot_sync(m, p) != 0; }
inline int __all_sync(unsigned m, int p) { return __ballot_sync(m, p) == m; }
template <class T>
T __reduce_add_sync(unsigned m, T v) {
  auto s = cudaemu::warp_exchange(m, &v, sizeof v);
  T r = 0;
  for (unsigned l = 0; l < 32; ++l)
    if (m >> l & 1) r += cudaemu::from_lane<T>(s, l);
  return r;
}

// ---- atomics (blocks run one after another, so a plain read-modify-write is atomic; the checker
// is told)
#define EMU_NOSAN __attribute__((no_sanitize("thread"), noinline))
template <class T>
EMU_NOSAN T atomicAdd(T* p, std::type_identity_t<T> v) {
  cudaemu::atomic_touch(p, sizeof(T), __builtin_return_address(0));
  T o = *p;
  *p = o + v;
  return o;
}
template <class T>
EMU_NOSAN T atomicSub(T* p, std::type_identity_t<T> v) {
  cudaemu::atomic_touch(p, sizeof(T), __builtin_return_address(0));
  T o = *p;
  *p = o - v;
  return o;
}
template <class T>
EMU_NOSAN T atomicMax(T* p, std::type_identity_t<T> v) {
  cudaemu::atomic_touch(p, sizeof(T), __builtin_return_address(0));
  T o = *p;
  if (v > o) *p = v;
  return o;
}
template <class T>
EMU_NOSAN T atomicMin(T* p, std::type_identity_t<T> v) {
  cudaemu::atomic_touch(p, sizeof(T), __builtin_return_address(0));
  T o = *p;
  if (v < o) *p = v;
  return o;
}
template <class T>
EMU_NOSAN T atomicExch(T* p, std::type_identity_t<T> v) {
  cudaemu::atomic_touch(p, sizeof(T), __builtin_return_address(0));
  T o = *p;
  *p = v;
  return o;
}
template <class T>
EMU_NOSAN T atomicOr(T* p, std::type_identity_t<T> v) {
  cudaemu::atomic_touch(p, sizeof(T), __builtin_return_address(0));
  T o = *p;
  *p = o | v;
  return o;
}
template <class T>
EMU_NOSAN T atomicCAS(T* p, std::type_identity_t<T> c, std::type_identity_t<T> v) {
  cudaemu::atomic_touch(p, sizeof(T), __builtin_return_address(0));
  T o = *p;
  if (o == c) *p = v;
  return o;
}

// ---- device math that is not in the C library
inline float rsqrtf(float x) { return 1.f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __powf(float x, float y) { return std::pow(x, y); }
inline float __fdividef(float x, float y) { return x / y; }
inline float __frcp_rn(float x) { return 1.f / x; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __saturatef(float x) { return x < 0.f ? 0.f : x > 1.f ? 1.f : x; }
inline float __int_as_float(int x) {
  float r;
  std::memcpy(&r, &x, 4);
  return r;
}
inline int __float_as_int(float x) {
  int r;
  std::memcpy(&r, &x, 4);
  return r;
}
inline unsigned __float_as_uint(float x) {
  unsigned r;
  std::memcpy(&r, &x, 4);
  return r;
}
inline float __uint_as_float(unsigned x) {
  float r;
  std::memcpy(&r, &x, 4);
  return r;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned((uint64_t(a) * b) >> 32); }
template <class T>
inline T __ldg(const T* p) {
  return *p;
}
template <class T>
inline T __ldcs(const T* p) {
  return *p;
}
template <class T>
inline void __stcs(T* p, T v) {
  *p = v;
}
template <class T>
inline T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
inline T max(T a, T b) {
  return a < b ? b : a;
}
