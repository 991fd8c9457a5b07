// Per row -sum_j t'_j log p_j with p = softmax(logits) and t' = w ((1 - e) t + e / classes) (label
// smoothing: Szegedy et al. 2015, section 7; w: class weights), 0 for ignored labels.
// Backward: d logits = g (p sum_j t'_j - t'), d t = -g w (1 - e) log p.
#include <algorithm>

#include "../../autograd/samples.h"
#include "../ops.h"
#include "broadcast.h"
#include "row_softmax.h"

namespace pupil {

// The target of one row, given as a label or as probabilities.
template <class T>
struct TargetRow {
  const int64_t* labels;  // null: probabilities
  const T* probabilities;
  const T* class_weight;  // null: 1
  int64_t classes, ignore_index;
  double smoothing;
  PUPIL_HD bool ignored(int64_t row) const { return labels && labels[row] == ignore_index; }
  PUPIL_HD acc_t<T> weight(int64_t j) const {
    return class_weight ? acc_t<T>(class_weight[j]) : acc_t<T>(1);
  }
  PUPIL_HD acc_t<T> operator()(int64_t row, int64_t j) const {
    using A = acc_t<T>;
    if (ignored(row)) return A(0);
    A t = labels ? (labels[row] == j ? A(1) : A(0)) : A(probabilities[row * classes + j]);
    return weight(j) * (A(1 - smoothing) * t + A(smoothing / double(classes)));
  }
};

template <class T>
struct CrossEntropyForward {
  const T* logits;
  TargetRow<T> target;
  acc_t<T>*log_partition, *loss, *row_weight;  // one per row; row_weight: of its label, or 1
  template <class Team>
  PUPIL_HD void operator()(const Team& team, int64_t row) const {
    using A = acc_t<T>;
    int64_t n = target.classes;
    const T* x = logits + row * n;
    auto r = row_statistics<T>(team, x, n, A(1));
    A log_z = r.max + r.log_sum;
    TargetRow<T> t = target;
    // A target of 0 counts 0 even where log p is -inf.
    A sum = team.reduce(n, A(0), Add{}, [&](int64_t j) {
      A w = t(row, j);
      return w == A(0) ? A(0) : w * (log_z - A(x[j]));
    });
    A label_weight = t.ignored(row) ? A(0) : t.labels ? t.weight(t.labels[row]) : A(1);
    A *z = log_partition + row, *l = loss + row, *w = row_weight + row;
    team.each(1, [&](int64_t) {
      *z = log_z;
      *l = sum;
      *w = label_weight;
    });
  }
};

template <class T>
struct CrossEntropyBackward {
  const T* logits;
  TargetRow<T> target;
  const acc_t<T>*log_partition, *gy;
  T *g_logits, *g_target;  // either may be null
  template <class Team>
  PUPIL_HD void operator()(const Team& team, int64_t row) const {
    using A = acc_t<T>;
    int64_t n = target.classes;
    const T* x = logits + row * n;
    TargetRow<T> t = target;
    A log_z = log_partition[row], g = gy[row];
    T *gx = g_logits ? g_logits + row * n : nullptr, *gt = g_target ? g_target + row * n : nullptr;
    A mass = team.reduce(n, A(0), Add{}, [&](int64_t j) { return t(row, j); });
    team.each(n, [&](int64_t j) {
      A log_p = A(x[j]) - log_z;
      if (gx) gx[j] = T(g * (exp(log_p) * mass - t(row, j)));
      if (gt) gt[j] = T(g * t.weight(j) * A(t.smoothing - 1) * log_p);
    });
  }
};

namespace {

void cpu_forward(const float* logits, const TargetRow<float>& target, float* log_partition,
                 float* loss, float* row_weight, int64_t rows) {
  int64_t n = target.classes;
  float keep = float(1 - target.smoothing), even = float(target.smoothing / double(n));
  parallel_for(rows, rows * n * 4, [=](int64_t row) {
    row_weight[row] = target.ignored(row) ? 0.0f : 1.0f;
    if (target.ignored(row)) {
      log_partition[row] = loss[row] = 0;
      return;
    }
    const float* x = logits + row * n;
    auto r = cpu_row_statistics(x, n, 1);
    float log_z = r.max + r.log_sum, sum = 0;
    if (!target.labels) {
      const float* t = target.probabilities + row * n;
#pragma omp simd reduction(+ : sum)
      for (int64_t j = 0; j < n; j++) {
        float w = keep * t[j] + even;
        sum += w == 0 ? 0.0f : w * (log_z - x[j]);
      }
    } else {
      if (even != 0) {
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < n; j++) sum += log_z - x[j];
      }
      float at_label = log_z - x[target.labels[row]];
      sum = even * sum + keep * at_label;
    }
    log_partition[row] = log_z;
    loss[row] = sum;
  });
}

void cpu_backward(const CrossEntropyBackward<float>& k, int64_t rows) {
  const TargetRow<float>& target = k.target;
  int64_t n = target.classes;
  float keep = float(1 - target.smoothing), even = float(target.smoothing / double(n));
  parallel_for(rows, rows * n * 4, [=](int64_t row) {
    const float* x = k.logits + row * n;
    float* gx = k.g_logits + row * n;
    float log_z = k.log_partition[row], g = k.gy[row], mass = 1;
    if (target.ignored(row)) {
      std::fill_n(gx, n, 0.0f);
      return;
    }
    if (target.labels) {
#pragma omp simd
      for (int64_t j = 0; j < n; j++) gx[j] = g * (vector_exp(x[j] - log_z) - even);
      gx[target.labels[row]] -= g * keep;
    } else {
      const float* t = target.probabilities + row * n;
      mass = 0;
#pragma omp simd reduction(+ : mass)
      for (int64_t j = 0; j < n; j++) mass += keep * t[j] + even;
#pragma omp simd
      for (int64_t j = 0; j < n; j++)
        gx[j] = g * (vector_exp(x[j] - log_z) * mass - (keep * t[j] + even));
    }
  });
}

struct Terms {
  Tensor loss, weight;  // of each row
};

Terms terms(const Tensor& logits, const Tensor& target, const CrossEntropyOptions& o) {
  require_floating("cross_entropy", logits);
  bool labels = target.dtype() == DType::i64;
  PUPIL_CHECK(logits.rank() == 2 && logits.dim(0) > 0 && logits.dim(1) > 0,
              "cross_entropy: logits (n, classes) expected, got ", logits.shape());
  int64_t n = logits.dim(0), classes = logits.dim(1);
  PUPIL_CHECK(target.shape() == (labels ? Shape{n} : logits.shape()), "cross_entropy: target ",
              target.shape(), " ", name_of(target.dtype()), " for logits ", logits.shape());
  double smoothing = o.smoothing;
  PUPIL_CHECK(smoothing >= 0 && smoothing <= 1, "cross_entropy: smoothing ", smoothing);
  if (!labels && target.dtype() != logits.dtype())
    return terms(logits, to_dtype(target, logits.dtype()), o);
  PUPIL_CHECK(
      !o.class_weight ||
          (o.class_weight.shape() == Shape{classes} && o.class_weight.dtype() == logits.dtype()),
      "cross_entropy: class weights do not fit ", logits.shape(), " ", name_of(logits.dtype()));
  Tensor x = logits.contiguous(), t = target.contiguous();
  Tensor class_weight = o.class_weight ? o.class_weight.contiguous().detach() : Tensor();
  Device device = x.device();
  if (labels && !device.is_cuda())
    for (int64_t row = 0; row < n; row++) {
      int64_t label = t.data<int64_t>()[row];
      PUPIL_CHECK((label >= 0 && label < classes) || label == o.ignore_index,
                  "cross_entropy: label ", label, " in row ", row, " for logits ", x.shape());
    }
  DType wide = acc_dtype(x.dtype());
  Tensor log_partition = empty({n}, wide, device), loss = empty({n}, wide, device);
  Tensor row_weight = empty({n}, wide, device);
  auto target_row = [=, ignore_index = o.ignore_index](auto tag) {
    using T = typename decltype(tag)::type;
    return TargetRow<T>{labels ? t.data<int64_t>() : nullptr,
                        labels ? nullptr : t.data<T>(),
                        class_weight ? class_weight.data<T>() : nullptr,
                        classes,
                        ignore_index,
                        smoothing};
  };
  dispatch(x.dtype(), [&](auto tag) {
    using T = typename decltype(tag)::type;
    using A = acc_t<T>;
    if (cpu_fast(x.dtype(), device) && !class_weight)
      cpu_forward(static_cast<float*>(x.raw()), target_row(pupil::tag<float>{}),
                  static_cast<float*>(log_partition.raw()), static_cast<float*>(loss.raw()),
                  static_cast<float*>(row_weight.raw()), n);
    else
      rows(device, n,
           CrossEntropyForward<T>{x.data<T>(), target_row(tag), log_partition.data<A>(),
                                  loss.data<A>(), row_weight.data<A>()},
           classes * 4);
  });
  Tensor saved = x.detach();
  record("cross_entropy", loss, {logits, target}, [=](Backward& b) {
    bool logits_too = b[0].needed, target_too = b[1].needed;
    Tensor gx = logits_too ? empty_like(saved) : Tensor();
    Tensor gy = b.gy.contiguous(), gt = target_too ? empty_like(saved) : Tensor();
    dispatch(saved.dtype(), [&](auto tag) {
      using T = typename decltype(tag)::type;
      using A = acc_t<T>;
      CrossEntropyBackward<T> k{saved.data<T>(),
                                target_row(tag),
                                log_partition.data<A>(),
                                gy.data<A>(),
                                logits_too ? gx.data<T>() : nullptr,
                                target_too ? gt.data<T>() : nullptr};
      if constexpr (std::is_same_v<T, float>) {
        if (cpu_fast(DType::f32, device) && !target_too && !class_weight) return cpu_backward(k, n);
      }
      rows(device, n, k, classes * 4);
    });
    b[0].give(std::move(gx));
    b[1].give(std::move(gt));
  });
  return {loss, row_weight};
}

}  // namespace

Tensor cross_entropy(const Tensor& logits, const Tensor& target, const CrossEntropyOptions& o) {
  Terms t = terms(logits, target, o);
  if (target.dtype() != DType::i64) return mean(t.loss);
  return div(sum(t.loss), sum(t.weight));
}

Tensor cross_entropy_rows(const Tensor& logits, const Tensor& target,
                          const CrossEntropyOptions& o) {
  return terms(logits, target, o).loss;
}

PUPIL_SAMPLES(cross_entropy) {
  auto with_labels = [](std::vector<int64_t> labels, double smoothing) {
    return [=](auto& v) {
      Tensor target = from(labels, {int64_t(labels.size())}).to(v[0].device());
      return cross_entropy(v[0], target, {.smoothing = smoothing});
    };
  };
  s.add("labels", {{4, 5}}, with_labels({0, 4, 2, 2}, 0), {.low = -3, .high = 3});
  s.add("smoothing", {{4, 5}}, with_labels({0, 4, 2, 2}, 0.1), {.low = -3, .high = 3});
  s.add("many classes", {{2, 301}}, with_labels({300, 7}, 0.2), {.low = -3, .high = 3});
  s.add("one row, one class", {{1, 1}}, with_labels({0}, 0));
  auto soft = [](double smoothing) {
    return [=](auto& v) { return cross_entropy(v[0], v[1], {.smoothing = smoothing}); };
  };
  s.add("probabilities", {{4, 5}, {4, 5}}, soft(0), {.low = 0.1, .high = 1});
  s.add("smooth probabilities", {{4, 5}, {4, 5}}, soft(0.2), {.low = 0.1, .high = 1});
  s.add("constant probabilities", {{2, 3}}, [](auto& v) {
    Tensor t = to_dtype(from(std::vector<double>{1, 0, 0, 0.25, 0, 0.75}, {2, 3}), v[0].dtype());
    return cross_entropy(v[0], t.to(v[0].device()), {.smoothing = 0.1});
  });
  s.add("ignored", {{4, 5}}, with_labels({-100, 4, 2, -100}, 0.1), {.low = -3, .high = 3});
  auto weighted = [](auto& v) {
    CrossEntropyOptions o{.smoothing = 0.1, .ignore_index = 1};
    o.class_weight = to_dtype(from(std::vector<double>{0.5, 2, 1, 0}, {4}), v[0].dtype());
    o.class_weight = o.class_weight.to(v[0].device());
    if (v.size() > 1) return cross_entropy(v[0], v[1], o);
    Tensor labels = from(std::vector<int64_t>{0, 1, 2, 3, 0}, {5}).to(v[0].device());
    return add(cross_entropy_rows(v[0], labels, o), cross_entropy(v[0], labels, o));
  };
  s.add("class weights", {{5, 4}}, weighted, {.low = -3, .high = 3});
  s.add("class weights of probabilities", {{3, 4}, {3, 4}}, weighted, {.low = 0.1, .high = 1});
  s.add_error("class weights", {{3, 5}, {3, 5}}, weighted);
  s.add_error("label too large", {{2, 3}}, with_labels({0, 3}, 0));
  s.add_error("negative label", {{2, 3}}, with_labels({0, -1}, 0));
  s.add_error("no rows", {{0, 3}}, with_labels({}, 0));
  s.add_error("label count", {{2, 3}}, with_labels({0}, 0));
  s.add_error("target shape", {{2, 3}, {2, 4}}, soft(0));
}

}  // namespace pupil
