// One row of a soft-max: its maximum and the logarithm of its partition function, of x / T.
#pragma once
#include "../launch.h"
#include "vector_math.h"

namespace pupil {

template <class A>
struct RowStatistics {
  A max;      // of x, not divided by T
  A log_sum;  // log sum_j exp((x_j - max) / T)
};

template <class T, class Team>
PUPIL_HD RowStatistics<acc_t<T>> row_statistics(const Team& team, const T* x, int64_t n,
                                                acc_t<T> inverse_temperature) {
  using A = acc_t<T>;
  A max = team.reduce(n, A(-INFINITY), Max{}, [&](int64_t j) { return A(x[j]); });
  A sum = team.reduce(n, A(0), Add{},
                      [&](int64_t j) { return exp((A(x[j]) - max) * inverse_temperature); });
  return {max, log(sum)};
}

// The float32 CPU twin; lanes of a vector are summed in a fixed order.
inline RowStatistics<float> cpu_row_statistics(const float* x, int64_t n,
                                               float inverse_temperature) {
  float max = -INFINITY, sum = 0;
#pragma omp simd reduction(max : max)
  for (int64_t j = 0; j < n; j++) max = x[j] > max ? x[j] : max;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; j++) sum += vector_exp_negative((x[j] - max) * inverse_temperature);
  return {max, std::log(sum)};
}

// For the caller to look at after the kernel; any number of rows may raise it at once.
PUPIL_HD inline void raise_flag(int64_t* flag) {
#ifdef __CUDA_ARCH__
  *flag = 1;
#else
  __atomic_store_n(flag, 1, __ATOMIC_RELAXED);
#endif
}

}  // namespace pupil
