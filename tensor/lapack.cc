// Row-major A is A^T to LAPACK, which counts along columns. Nothing is transposed to please it:
// factorisations of A^T are read as factorisations of A.
#include "lapack.h"

#include <algorithm>
#include <climits>

#include "runtime.h"

extern "C" {  // the last arguments are the lengths of the characters
void dgemm_(const char*, const char*, const int* m, const int* n, const int* k, const double* alpha,
            const double* a, const int* lda, const double* b, const int* ldb, const double* beta,
            double* c, const int* ldc, size_t, size_t);
void sgemm_(const char*, const char*, const int* m, const int* n, const int* k, const float* alpha,
            const float* a, const int* lda, const float* b, const int* ldb, const float* beta,
            float* c, const int* ldc, size_t, size_t);
void dgetrf_(const int* m, const int* n, double* a, const int* lda, int* pivots, int* info);
void sgetrf_(const int* m, const int* n, float* a, const int* lda, int* pivots, int* info);
void dgetrs_(const char* trans, const int* n, const int* columns, const double* a, const int* lda,
             const int* pivots, double* b, const int* ldb, int* info, size_t);
void sgetrs_(const char* trans, const int* n, const int* columns, const float* a, const int* lda,
             const int* pivots, float* b, const int* ldb, int* info, size_t);
void dgesdd_(const char* job, const int* m, const int* n, double* a, const int* lda, double* s,
             double* u, const int* ldu, double* vt, const int* ldvt, double* work, const int* size,
             int* integers, int* info, size_t);
void dgelqf_(const int* m, const int* n, double* a, const int* lda, double* tau, double* work,
             const int* size, int* info);
void dorglq_(const int* m, const int* n, const int* k, double* a, const int* lda, const double* tau,
             double* work, const int* size, int* info);
void dtrsm_(const char* side, const char* uplo, const char* trans, const char* diagonal,
            const int* m, const int* n, const double* alpha, const double* a, const int* lda,
            double* b, const int* ldb, size_t, size_t, size_t, size_t);
int openblas_get_parallel();  // 0 serial, 1 own threads, 2 OpenMP
void openblas_set_num_threads(int);
}

namespace pupil::lapack {
namespace {

// OpenBLAS built with OpenMP works on our pool; one with threads of its own would fight it
// for the CPUs, so it gets a single thread.
struct Threads : ThreadLimit {
  explicit Threads(int n) : ThreadLimit(n) {
    static const bool own_threads = openblas_get_parallel() == 1;
    if (own_threads) openblas_set_num_threads(1);
  }
};
// Many small steps: meeting of threads costs more than they save.
struct OneThread : Threads {
  OneThread() : Threads(1) {}
};

int size(int64_t n) {
  PUPIL_CHECK(n <= INT_MAX, "lapack: ", n, " rows or columns");
  return int(n);
}
int leading(int64_t n) { return int(std::max<int64_t>(n, 1)); }  // 0 is refused

// call(work, size, info) twice: LAPACK says how much memory it wants, then works.
template <class F>
void with_workspace(const char* routine, const F& call) {
  double wanted = 1;
  int query = -1, info = 0;
  call(&wanted, &query, &info);
  int n = std::max(1, int(wanted));
  std::vector<double> work(static_cast<size_t>(n));
  call(work.data(), &n, &info);
  PUPIL_CHECK(info == 0, "lapack: ", routine, " returned ", info);
}

}  // namespace

void product(const Tensor& a, const Tensor& b, const Tensor& c, double beta) {
  if (c.numel() == 0) return;
  Threads guard(library_threads());
  auto swapped = [](const Tensor& x) { return x.strides()[1] != 1 && x.dim(1) > 1; };
  auto stride = [&](const Tensor& x) {
    return leading(swapped(x) ? std::max(x.strides()[1], x.dim(0))
                              : std::max(x.dim(0) > 1 ? x.strides()[0] : 0, x.dim(1)));
  };
  PUPIL_CHECK(
      !swapped(c) && (!swapped(a) || a.strides()[0] == 1) && (!swapped(b) || b.strides()[0] == 1),
      "lapack: product of matrices without a dense axis");
  int m = size(c.dim(0)), n = size(c.dim(1)), k = size(a.dim(1));
  int step_a = stride(a), step_b = stride(b), step_c = stride(c);
  const char *left = swapped(b) ? "T" : "N", *right = swapped(a) ? "T" : "N";
  f64_or_f32(c.dtype(), [&](auto t) {
    using T = typename decltype(t)::type;
    T one = 1, factor = T(beta);
    auto run = [&](auto f) {  // c^T = b^T a^T
      f(left, right, &n, &m, &k, &one, b.data<T>(), &step_b, a.data<T>(), &step_a, &factor,
        c.data<T>(), &step_c, size_t(1), size_t(1));
    };
    if constexpr (std::is_same_v<T, double>)
      run(dgemm_);
    else
      run(sgemm_);
  });
}

Lu::Lu(const Tensor& a) : factors(a.clone()), pivots(size_t(a.dim(0))) {
  int n = size(a.dim(0)), step = leading(n), info = 0;
  OneThread guard;
  f64_or_f32(a.dtype(), [&](auto t) {
    using T = typename decltype(t)::type;
    auto run = [&](auto f) { f(&n, &n, factors.data<T>(), &step, pivots.data(), &info); };
    if constexpr (std::is_same_v<T, double>)
      run(dgetrf_);
    else
      run(sgetrf_);
  });
  PUPIL_CHECK(info >= 0, "lapack: getrf returned ", info);
  singular = info > 0;
}

Tensor Lu::solve(const Tensor& b, bool transposed) const {
  int n = size(factors.dim(0)), columns = size(b.dim(1)), step = leading(n), info = 0;
  const char* trans = transposed ? "N" : "T";
  // Columns of b, one after the other.
  Shape shape{b.dim(1), b.dim(0)}, strides{b.strides()[1], b.strides()[0]};
  Tensor x = alias(b, shape, strides).clone();
  Threads guard(library_threads());
  f64_or_f32(b.dtype(), [&](auto t) {
    using T = typename decltype(t)::type;
    auto run = [&](auto f) {
      f(trans, &n, &columns, factors.data<T>(), &step, pivots.data(), x.data<T>(), &step, &info,
        size_t(1));
    };
    if constexpr (std::is_same_v<T, double>)
      run(dgetrs_);
    else
      run(sgetrs_);
  });
  PUPIL_CHECK(info == 0, "lapack: getrs returned ", info);
  return alias(x, {b.dim(0), b.dim(1)}, {1, x.strides()[0]});
}

void svd(const Tensor& a, const Tensor& u, const Tensor& s, const Tensor& vt) {
  Tensor scratch = a.clone();
  int m = size(a.dim(0)), n = size(a.dim(1)), k = std::min(m, n), step = leading(n);
  int step_k = leading(k);
  std::vector<int> integers(8 * size_t(k));
  OneThread guard;
  with_workspace("gesdd", [&](double* work, const int* words, int* info) {
    dgesdd_("S", &n, &m, scratch.data<double>(), &step, s.data<double>(), vt.data<double>(), &step,
            u.data<double>(), &step_k, work, words, integers.data(), info, 1);
  });
}

int qr(const Tensor& a, const Tensor& q, const Tensor& r) {
  copy_into(q, a);
  int m = size(a.dim(0)), n = size(a.dim(1)), step = leading(n);
  std::vector<double> tau(static_cast<size_t>(n));
  double *rows = q.data<double>(), *upper = r.data<double>();
  OneThread guard;
  with_workspace("gelqf", [&](double* work, const int* words, int* info) {
    dgelqf_(&n, &m, rows, &step, tau.data(), work, words, info);
  });
  for (int i = 0; i < n; i++)
    for (int j = 0; j < n; j++) upper[i * int64_t(n) + j] = j < i ? 0 : rows[i * int64_t(n) + j];
  with_workspace("orglq", [&](double* work, const int* words, int* info) {
    dorglq_(&n, &m, &n, rows, &step, tau.data(), work, words, info);
  });
  int determinant = 1;  // a reflection each, where tau is not 0
  for (int i = 0; i < n; i++) {
    if (tau[size_t(i)] != 0) determinant = -determinant;
    if (!(upper[i * int64_t(n) + i] < 0)) continue;
    determinant = -determinant;
    for (int j = i; j < n; j++) upper[i * int64_t(n) + j] = -upper[i * int64_t(n) + j];
    for (int j = 0; j < m; j++) rows[j * int64_t(n) + i] = -rows[j * int64_t(n) + i];
  }
  return determinant;
}

Tensor solve_upper_transposed(const Tensor& b, const Tensor& r) {
  Tensor x = b.clone();
  int m = size(b.dim(0)), n = size(b.dim(1)), step = leading(n);
  double one = 1;
  Threads guard(library_threads());
  dtrsm_("L", "L", "T", "N", &n, &m, &one, r.data<double>(), &step, x.data<double>(), &step, 1, 1,
         1, 1);
  return x;
}

}  // namespace pupil::lapack
