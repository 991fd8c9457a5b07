// The whole device layer. An op is a functor; four launchers run it from one source: as a loop on
// the CPU, in the GPU's lane order on the CPU (tests), and as a CUDA kernel.
//
//   map     f(i)                        for every i < n
//   map_nd  f(i, offsets)               the same with the strided (broadcast) offset in each tensor
//   rows    k(team, row)                one team per row; it may only `each` and `reduce`
//   cols    k.value(row, col) summed over rows, then k.store(col, sum)
//
// Functor types stand at namespace scope: nvcc refuses a type that is local to a function.
#pragma once
#include <omp.h>

#include <algorithm>

#include "runtime.h"
#include "tensor.h"

namespace pupil {

struct Add {
  template <class A>
  PUPIL_HD A operator()(A a, A b) const {
    return a + b;
  }
};
template <class T>
struct AddInto {  // to += from
  T* to;
  const T* from;
  PUPIL_HD void operator()(int64_t i) const { to[i] = T(acc_t<T>(to[i]) + acc_t<T>(from[i])); }
};
struct Max {
  template <class A>
  PUPIL_HD A operator()(A a, A b) const {
    return a > b ? a : b;
  }
};

// A team shares one row. each(n, f) runs f(i) for all i < n and then meets at a barrier;
// reduce(n, init, op, f) gives the same value on every lane.
struct SerialTeam {
  template <class F>
  PUPIL_HD void each(int64_t n, F f) const {
    for (int64_t i = 0; i < n; i++) f(i);
  }
  template <class A, class Op, class F>
  PUPIL_HD A reduce(int64_t n, A init, Op op, F f) const {
    A a = init;
    for (int64_t i = 0; i < n; i++) a = op(a, f(i));
    return a;
  }
};

// The GPU's lane order on the CPU: strided partial results, then the same tree. Lanes run backwards
// on purpose: a kernel that reads what a neighbour wrote in the same `each` gives another result.
template <int W>
struct LaneTeam {
  template <class F>
  PUPIL_HD void each(int64_t n, F f) const {
    for (int lane = W - 1; lane >= 0; lane--)
      for (int64_t i = lane; i < n; i += W) f(i);
  }
  template <class A, class Op, class F>
  PUPIL_HD A reduce(int64_t n, A init, Op op, F f) const {
    A partial[W];
    for (int lane = 0; lane < W; lane++) {
      partial[lane] = init;
      for (int64_t i = lane; i < n; i += W) partial[lane] = op(partial[lane], f(i));
    }
    for (int s = W / 2; s > 0; s /= 2)
      for (int lane = 0; lane < s; lane++) partial[lane] = op(partial[lane], partial[lane + s]);
    return partial[0];
  }
};

// Tests flip this to run row kernels in the GPU's lane order on the CPU.
enum class CpuTeam { serial, lanes };
CpuTeam& cpu_team();

constexpr int kLanes = 128;
// Elements of work below which an OpenMP region costs more than it saves: a region costs about a
// microsecond even when its `if` keeps it on one thread.
constexpr int64_t kParallelWork = 32768;

constexpr int64_t kElementsAtOnce = 4096;  // the unit of long loops that threads share

// What the loops of a body are compiled for: every processor from x86-64-v3 on, or also AVX-512,
// taken where it is there. `widest` doubles the code; it pays where a loop computes more than it
// loads.
enum class Vectors { common, widest };

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__CUDACC__)
#define PUPIL_AVX512 \
  [[gnu::flatten, gnu::target("avx512f,avx512dq,avx512bw,avx512vl,prefer-vector-width=512")]]
template <class Body>
PUPIL_AVX512 void run_avx512(const Body& body, int64_t begin, int64_t end) {
  const Body mine = body;
  for (int64_t i = begin; i < end; i++) mine(i);
}
#endif

template <Vectors vectors, class Body>
void run_loop(const Body& body, int64_t begin, int64_t end) {
#ifdef PUPIL_AVX512
  if constexpr (vectors == Vectors::widest)
    if (cpu_has_avx512()) return run_avx512(body, begin, end);
#endif
  const Body mine = body;
  for (int64_t i = begin; i < end; i++) mine(i);
}

// body(i) for every i < n on the CPU, on all threads when `work`, in elements, is worth it. Runs on
// local copies of body: no store can change what it captured by value, so that loops inside keep it
// in registers.
template <Vectors vectors = Vectors::common, class Body>
void parallel_for(int64_t n, int64_t work, const Body& body) {
  if (work <= kParallelWork) return run_loop<vectors>(body, 0, n);
#pragma omp parallel
  {
    int64_t threads = omp_get_num_threads(), thread = omp_get_thread_num();
    run_loop<vectors>(body, n * thread / threads, n * (thread + 1) / threads);
  }
}
// cols: rows are cut into at most this many chunks, whatever the thread count, so that the order of
// the sum does not depend on threads.
constexpr int64_t kColumnChunks = 64;

struct ColumnPlan {
  int64_t chunks, rows_per_chunk;
  explicit ColumnPlan(int64_t rows) {
    rows_per_chunk = std::max<int64_t>(16, (rows + kColumnChunks - 1) / kColumnChunks);
    chunks = rows ? (rows + rows_per_chunk - 1) / rows_per_chunk : 0;
  }
};

// Strides of up to four tensors over one common shape; stride 0 repeats (broadcast).
template <int N>
struct NdIndex {
  int rank = 0;
  int64_t dims[kMaxRank]{};
  int64_t strides[N][kMaxRank]{};
  PUPIL_HD void offsets(int64_t i, int64_t (&at)[N]) const {
    for (int t = 0; t < N; t++) at[t] = 0;
    for (int d = rank - 1; d >= 0; d--) {
      int64_t k = i % dims[d];
      i /= dims[d];
      for (int t = 0; t < N; t++) at[t] += k * strides[t][d];
    }
  }
};

// The index of `tensors` broadcast to `shape` as NumPy does. Throws with the op's name.
template <int N>
NdIndex<N> broadcast_index(const char* op, const Shape& shape, const Tensor* const (&tensors)[N]) {
  NdIndex<N> index;
  index.rank = shape.rank;
  for (int d = 0; d < shape.rank; d++) index.dims[d] = shape.dims[d];
  for (int t = 0; t < N; t++) {
    const Tensor& x = *tensors[t];
    int shift = shape.rank - x.rank();
    PUPIL_CHECK(shift >= 0 && x.layout() == Layout::strided, op, ": cannot broadcast ", x.shape(),
                " to ", shape);
    for (int d = 0; d < x.rank(); d++) {
      PUPIL_CHECK(x.dim(d) == shape.dims[d + shift] || x.dim(d) == 1, op, ": cannot broadcast ",
                  x.shape(), " to ", shape);
      index.strides[t][d + shift] = x.dim(d) == 1 ? 0 : x.strides().dims[d];
    }
  }
  return index;
}

// Fewer dimensions with the same elements in the same order: drops dimensions of size 1 and merges
// neighbours that every tensor walks with one stride. Rank 0 becomes rank 1 with one element.
template <int N>
NdIndex<N> coalesce(const NdIndex<N>& full) {
  NdIndex<N> index;
  for (int d = 0; d < full.rank; d++) {
    if (full.dims[d] == 1) continue;
    bool merge = index.rank > 0;
    for (int t = 0; t < N && merge; t++)
      merge = index.strides[t][index.rank - 1] == full.strides[t][d] * full.dims[d];
    if (!merge) index.dims[index.rank++] = 1;
    index.dims[index.rank - 1] *= full.dims[d];
    for (int t = 0; t < N; t++) index.strides[t][index.rank - 1] = full.strides[t][d];
  }
  if (index.rank == 0) {
    index.rank = 1;
    index.dims[0] = 1;
  }
  return index;
}

// On the CPU: run(offsets, first, n) for runs of neighbouring elements first .. first + n - 1,
// along which tensor t advances by index.strides[t][index.rank - 1] from offsets[t]. `index` comes
// from coalesce(); long runs are cut so that threads can share them, at places that depend on the
// shape only.
template <int N, class Run>
void cpu_runs(const NdIndex<N>& index, const Run& run) {
  NdIndex<N> outer = index;
  int last = --outer.rank;
  int64_t inner = index.dims[last], pieces = (inner + kElementsAtOnce - 1) / kElementsAtOnce,
          rows = 1;
  for (int d = 0; d < last; d++) rows *= index.dims[d];
  parallel_for(rows * pieces, rows * inner, [=](int64_t k) {
    int64_t row = k / pieces, begin = k % pieces * kElementsAtOnce, at[N];
    outer.offsets(row, at);
    for (int t = 0; t < N; t++) at[t] += begin * index.strides[t][last];
    run(at, row * inner + begin, std::min(kElementsAtOnce, inner - begin));
  });
}

template <int N, class F>
struct MapNd {
  NdIndex<N> index;
  F f;
  PUPIL_HD void operator()(int64_t i) const {
    int64_t at[N];
    index.offsets(i, at);
    f(i, at);
  }
};

#if PUPIL_CUDA
cudaStream_t cuda_stream();  // the one non-blocking stream of the device

// The only place that launches: plain C++ (no <<<>>>), argument types checked, errors thrown at
// once.
template <class... P, class... A>
void cuda_launch(dim3 grid, dim3 block, void (*kernel)(P...), const A&... args) {
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.stream = cuda_stream();
  cudaError_t e = cudaLaunchKernelEx(&config, kernel, P(args)...);
  PUPIL_CHECK(e == cudaSuccess, "kernel launch failed: ", cudaGetErrorName(e));
}

#if defined(__CUDA_ARCH__) || defined(PUPIL_EMU)
#define PUPIL_DEVICE_PASS 1
#endif

template <int W>
struct BlockTeam {  // one block is one team
#if PUPIL_DEVICE_PASS
  template <class F>
  __device__ void each(int64_t n, F f) const {
    for (int64_t i = threadIdx.x; i < n; i += W) f(i);
    __syncthreads();
  }
  template <class A, class Op, class F>
  __device__ A reduce(int64_t n, A init, Op op, F f) const {
    __shared__ A partial[W];
    A a = init;
    for (int64_t i = threadIdx.x; i < n; i += W) a = op(a, f(i));
    partial[threadIdx.x] = a;
    __syncthreads();
    for (int s = W / 2; s > 0; s /= 2) {
      if (int(threadIdx.x) < s)
        partial[threadIdx.x] = op(partial[threadIdx.x], partial[threadIdx.x + s]);
      __syncthreads();
    }
    A result = partial[0];
    __syncthreads();
    return result;
  }
#else  // nvcc's host pass only needs the names
  template <class F>
  PUPIL_HD void each(int64_t, F) const {}
  template <class A, class Op, class F>
  PUPIL_HD A reduce(int64_t, A init, Op, F) const {
    return init;
  }
#endif
};

template <class F>
__global__ void __launch_bounds__(256) map_kernel(int64_t n, F f) {
  for (int64_t i = blockIdx.x * int64_t(blockDim.x) + threadIdx.x; i < n;
       i += int64_t(gridDim.x) * blockDim.x)
    f(i);
}

template <int W, class K>
__global__ void __launch_bounds__(W) rows_kernel(int64_t n, K k) {
  for (int64_t row = blockIdx.x; row < n; row += gridDim.x) k(BlockTeam<W>{}, row);
}

template <class K, class Sum>
__global__ void __launch_bounds__(256)
    cols_partial_kernel(int64_t n, int64_t columns, int64_t rows_per_chunk, Sum* partial, K k) {
  int64_t col = blockIdx.x * int64_t(blockDim.x) + threadIdx.x, chunk = blockIdx.y;
  if (col >= columns) return;
  int64_t end = (chunk + 1) * rows_per_chunk;
  Sum sum{};
  for (int64_t row = chunk * rows_per_chunk; row < (end < n ? end : n); row++)
    sum = sum + k.value(row, col);
  partial[chunk * columns + col] = sum;
}
#endif  // PUPIL_CUDA

template <class F>
concept AsksForWidest = requires {
  requires F::widest;
};
template <class F>
constexpr Vectors vectors_of = AsksForWidest<F> ? Vectors::widest : Vectors::common;

// f(i) for begin <= i < end on the CPU and the calling thread; calls must not depend on each other
// (the loop is vectorised). F::widest, true: for Vectors::widest.
template <class F>
void map_here(int64_t begin, int64_t end, const F& f) {
  auto loop = [f, begin, end](int64_t) {
#pragma omp simd
    for (int64_t i = begin; i < end; i++) f(i);
  };
  run_loop<vectors_of<F>>(loop, 0, 1);
}

// f(i) for every i < n, as map_here.
template <class F>
void map([[maybe_unused]] Device device, int64_t n, const F& f) {
  if (n == 0) return;
#if PUPIL_CUDA
  if (device.is_cuda()) {
    int64_t blocks = std::min<int64_t>((n + 255) / 256, 65535);
    cuda_launch(dim3(unsigned(blocks)), dim3(256), map_kernel<F>, n, f);
    return;
  }
#endif
  int64_t pieces = (n + kElementsAtOnce - 1) / kElementsAtOnce;
  parallel_for<vectors_of<F>>(pieces, n, [f, n](int64_t piece) {
    int64_t end = std::min(n, (piece + 1) * kElementsAtOnce);
#pragma omp simd
    for (int64_t i = piece * kElementsAtOnce; i < end; i++) f(i);
  });
}

// f(i, offsets) for every i < shape.numel(); offsets[t] is the element of tensors[t] that belongs
// to i.
template <int N, class F>
void map_nd(const char* op, Device device, const Shape& shape, const Tensor* const (&tensors)[N],
            const F& f) {
  map(device, shape.numel(), MapNd<N, F>{coalesce(broadcast_index(op, shape, tensors)), f});
}

// k(team, row) for every row < n. work: about how many elements one row touches.
template <class K>
void rows([[maybe_unused]] Device device, int64_t n, const K& k,
          [[maybe_unused]] int64_t work = 64) {
  if (n == 0) return;
#if PUPIL_CUDA
  if (device.is_cuda()) {
    cuda_launch(dim3(unsigned(std::min<int64_t>(n, 1 << 20))), dim3(kLanes), rows_kernel<kLanes, K>,
                n, k);
    return;
  }
#endif
  if (cpu_team() == CpuTeam::lanes) {
    for (int64_t row = 0; row < n; row++) k(LaneTeam<kLanes>{}, row);
    return;
  }
  parallel_for(n, n * work, [k](int64_t row) { k(SerialTeam{}, row); });
}

// The second stage of cols: adds a column's partial sums in chunk order.
template <class K, class Sum>
struct ColumnFinish {
  K k;
  const Sum* partial;
  int64_t chunks, columns;
  PUPIL_HD void operator()(int64_t col) const {
    Sum sum{};
    for (int64_t chunk = 0; chunk < chunks; chunk++) sum = sum + partial[chunk * columns + col];
    k.store(col, sum);
  }
};

// sum[col] = the sum of k.value(row, col) for begin <= row < end, on the CPU.
template <class K, class Sum>
void sum_rows(K k, int64_t begin, int64_t end, int64_t columns, Sum* sum) {
  for (int64_t col = 0; col < columns; col++) sum[col] = Sum{};
  for (int64_t row = begin; row < end; row++)
    for (int64_t col = 0; col < columns; col++) sum[col] = sum[col] + k.value(row, col);
}

// k.store(col, sum over rows of k.value(row, col)) for every column: K::Sum is a number or a struct
// with operator+ that starts at zero. Two stages, no atomics.
template <class K>
void cols(Device device, int64_t n, int64_t columns, const K& k) {
  using Sum = typename K::Sum;
  if (columns == 0) return;
  ColumnPlan plan(n);
  Tensor buffer = empty({plan.chunks * columns * int64_t(sizeof(Sum))}, DType::u8, device);
  Sum* partial = static_cast<Sum*>(buffer.raw());
#if PUPIL_CUDA
  if (device.is_cuda() && plan.chunks)
    cuda_launch(dim3(unsigned((columns + 255) / 256), unsigned(plan.chunks)), dim3(256),
                cols_partial_kernel<K, Sum>, n, columns, plan.rows_per_chunk, partial, k);
  if (!device.is_cuda())
#endif
  {
    parallel_for(plan.chunks, n * columns, [=](int64_t chunk) {
      int64_t begin = chunk * plan.rows_per_chunk;
      sum_rows(k, begin, std::min(n, begin + plan.rows_per_chunk), columns,
               partial + chunk * columns);
    });
  }
  map(device, columns, ColumnFinish<K, Sum>{k, partial, plan.chunks, columns});
}

}  // namespace pupil
