#include "kd.h"

#include "../autograd/samples.h"
#include "../tensor/launch.h"
#include "method.h"
#include "row_loss.h"

namespace pupil::methods {
namespace {

// [kd 3] How a row of softened probabilities becomes a number.
enum class RowLoss { divergence, cross_entropy, squared_error };

struct RowPlan {
  RowLoss kind = RowLoss::divergence;
  double factor = 1;  // of the sum over rows and classes
};

// [kd 4]
RowPlan plan(const KdOptions& o, int64_t n, int64_t classes, bool has_labels) {
  double t2 = o.temperature * o.temperature, rows = double(n);
  switch (o.reduction) {
    case KdReduction::batchmean:
      return {RowLoss::divergence, t2 / rows};
    case KdReduction::mean:
      return {RowLoss::divergence, t2 / rows / double(classes)};
    case KdReduction::sum:
      return {RowLoss::divergence, t2};
    case KdReduction::torchdistill:
      if (!has_labels || o.alpha.value_or(0) == 0) return {RowLoss::divergence, 1 / rows};
      return {RowLoss::divergence, o.beta.value_or(1 - *o.alpha) * t2 / rows};
    case KdReduction::cls_kd:
      return {RowLoss::cross_entropy, o.alpha.value_or(1) * t2 / rows};
    default:
      return {RowLoss::squared_error, t2 / rows / double(classes)};
  }
}

// The factor of the cross-entropy on labels that two of the reductions contain.
double label_weight(const KdOptions& o, bool has_labels) {
  if (!has_labels) return 0;
  if (o.reduction == KdReduction::torchdistill) return o.alpha.value_or(0);
  if (o.reduction == KdReduction::cls_kd) return 1 - o.alpha.value_or(1);
  return 0;
}

void check(const Tensor& student, const Tensor& teacher, const KdOptions& o) {
  PUPIL_CHECK(student.rank() == 2 && student.shape() == teacher.shape(), "kd_loss: student logits ",
              student.shape(), " and teacher logits ", teacher.shape(),
              " must both be (n, classes)");
  PUPIL_CHECK(student.numel() > 0, "kd_loss: no logits, shape ", student.shape());
  PUPIL_CHECK(o.temperature > 0 && !std::isinf(o.temperature),
              "kd_loss: temperature must be a finite number > 0, got ", o.temperature);
  PUPIL_CHECK(!o.logit_standardization || student.dim(1) > 1,
              "kd_loss: logit standardization needs at least 2 classes, got ", student.shape());
  require_finite("kd_loss", "teacher logits", teacher);
}

}  // namespace

// One row: both soft-maxes, the loss and dL/ds in one pass; no probabilities are stored.
template <class T>
struct KdRow {
  const T *student, *teacher;
  T* gradient;
  acc_t<T>* loss;
  int64_t classes;
  double temperature, factor, eps;
  bool standardize;
  RowLoss kind;

  template <class A>
  struct Affine {  // [kd 2] a logit becomes (z - mean) * inverse, then is divided by T
    A mean, inverse, deviation;
  };

  template <class Team, class A>
  PUPIL_HD Affine<A> affine(const Team& team, const T* z, A inverse_t) const {
    if (!standardize) return {A(0), inverse_t, A(1)};
    A mean = team.reduce(classes, A(0), Add{}, [&](int64_t i) { return A(z[i]); }) / A(classes);
    A squares = team.reduce(classes, A(0), Add{},
                            [&](int64_t i) { return (A(z[i]) - mean) * (A(z[i]) - mean); });
    A deviation = sqrt(squares / A(classes - 1));
    return {mean, inverse_t / (A(eps) + deviation), deviation};
  }

  // log of the sum of exp(u) over the row
  template <class Team, class A>
  PUPIL_HD A log_sum(const Team& team, const T* z, const Affine<A>& a) const {
    A top = team.reduce(classes, A(-INFINITY), Max{},
                        [&](int64_t i) { return (A(z[i]) - a.mean) * a.inverse; });
    return top + log(team.reduce(classes, A(0), Add{}, [&](int64_t i) {
             return exp((A(z[i]) - a.mean) * a.inverse - top);
           }));
  }

  template <class Team>
  PUPIL_HD void operator()(const Team& team, int64_t row) const {
    using A = acc_t<T>;
    const T *s = student + row * classes, *t = teacher + row * classes;
    T* g = gradient + row * classes;
    A inverse_t = A(1 / temperature);
    Affine<A> of_s = affine(team, s, inverse_t), of_t = affine(team, t, inverse_t);
    A sum_s = log_sum(team, s, of_s), sum_t = log_sum(team, t, of_t);
    // [kd 1]
    auto log_ps = [&](int64_t i) { return (A(s[i]) - of_s.mean) * of_s.inverse - sum_s; };
    auto log_pt = [&](int64_t i) { return (A(t[i]) - of_t.mean) * of_t.inverse - sum_t; };

    // [kd 3]
    A value = team.reduce(classes, A(0), Add{}, [&](int64_t i) {
      A lt = log_pt(i), ls = log_ps(i), pt = exp(lt);
      if (kind == RowLoss::divergence) return pt * (lt - ls);
      if (kind == RowLoss::cross_entropy) return -pt * ls;
      A d = exp(ls) - pt;
      return d * d;
    });
    team.each(1, [&](int64_t) { loss[row] = value * A(factor); });

    // [kd 6] With u the input of the student's softmax: dL/du.
    A projection = A(0);  // of the squared error's dL/dp on p, for the softmax's Jacobian
    if (kind == RowLoss::squared_error)
      projection = team.reduce(classes, A(0), Add{}, [&](int64_t i) {
        A ps = exp(log_ps(i));
        return A(2) * (ps - exp(log_pt(i))) * ps;
      });
    auto slope = [&](int64_t i) {
      A ps = exp(log_ps(i)), pt = exp(log_pt(i));
      A d = kind == RowLoss::squared_error ? ps * (A(2) * (ps - pt) - projection) : ps - pt;
      return d * A(factor);
    };
    if (!standardize) {
      team.each(classes, [&](int64_t i) { g[i] = T(slope(i) * inverse_t); });
      return;
    }
    // Through z^ = (z - mean) / (eps + deviation): dL/dz = (g - mean g) / (eps + deviation)
    //   - z^ <g, z^> / ((K - 1) deviation), the last term 0 for a deviation of 0. z^ = u T.
    A mean_slope =
        team.reduce(classes, A(0), Add{}, [&](int64_t i) { return slope(i); }) / A(classes);
    A along = team.reduce(classes, A(0), Add{}, [&](int64_t i) {
      return slope(i) * (A(s[i]) - of_s.mean) * of_s.inverse;
    });
    A bend = of_s.deviation > A(0) ? along / (A(classes - 1) * of_s.deviation) : A(0);
    team.each(classes, [&](int64_t i) {
      A z = (A(s[i]) - of_s.mean) * of_s.inverse * A(temperature);
      g[i] = T((slope(i) - mean_slope) * of_s.inverse - z * bend);
    });
  }
};

namespace {

Tensor kd_rows(const Tensor& student, const Tensor& teacher, const KdOptions& o, RowPlan row_plan) {
  Tensor s = student.contiguous().detach(), t = teacher.detach().to(s.dtype()).contiguous();
  int64_t n = s.dim(0), classes = s.dim(1);
  DType acc = acc_dtype(s.dtype());
  Device device = s.device();
  Tensor gradient = empty_like(s), losses = empty({n}, acc, device);
  dispatch(s.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    using A = acc_t<T>;
    rows(device, n,
         KdRow<T>{s.data<T>(), t.data<T>(), gradient.data<T>(), losses.data<A>(), classes,
                  o.temperature, row_plan.factor, o.eps, o.logit_standardization, row_plan.kind},
         8 * classes);
  });
  return row_loss("kd_loss", student, teacher, losses, std::move(gradient));
}

// [kd 5] + weight * CE(student, labels) where the reduction says so
Tensor with_labels(const Tensor& loss, const Tensor& student, const Tensor& labels, double weight) {
  if (weight == 0) return loss;
  Tensor ce = cross_entropy(student, labels);
  if (ce.dtype() != loss.dtype()) ce = to_dtype(ce, loss.dtype());
  return add(loss, scale(ce, weight));
}

}  // namespace

Tensor kd_loss(const Tensor& student, const Tensor& teacher, const Tensor& labels,
               const KdOptions& o) {
  if (plain_mode()) return kd_loss_plain(student, teacher, labels, o);
  check(student, teacher, o);
  Tensor loss = kd_rows(student, teacher, o, plan(o, student.dim(0), student.dim(1), bool(labels)));
  return with_labels(loss, student, labels, label_weight(o, bool(labels)));
}

StandardizedLogits standardize_logits(const Tensor& logits, double eps) {
  PUPIL_CHECK(logits.rank() == 2 && logits.dim(1) > 1,
              "standardize_logits: (n, classes) with at least 2 classes expected, got ",
              logits.shape());
  Tensor average = mean(logits, {1}, true), centred = sub(logits, average);  // [kd 2]
  Tensor variance = scale(sum(square(centred), {1}, true), 1 / double(logits.dim(1) - 1));
  Tensor deviation = sqrt(variance);
  return {div(centred, add_scalar(deviation, eps)), average, deviation};
}

Tensor kd_loss_plain(const Tensor& student, const Tensor& teacher, const Tensor& labels,
                     const KdOptions& o) {
  check(student, teacher, o);
  RowPlan row_plan = plan(o, student.dim(0), student.dim(1), bool(labels));
  DType acc = acc_dtype(student.dtype());
  Tensor s = student.dtype() == acc ? student : to_dtype(student, acc);
  Tensor t = teacher.detach().to(acc);
  if (o.logit_standardization) {
    s = standardize_logits(s, o.eps).values;
    t = standardize_logits(t, o.eps).values;
  }
  // [kd 1]
  Tensor log_ps = log_softmax(s, o.temperature), log_pt = log_softmax(t, o.temperature);
  Tensor value;  // [kd 3]
  if (row_plan.kind == RowLoss::divergence)
    value = sum(mul(exp(log_pt), sub(log_pt, log_ps)));
  else if (row_plan.kind == RowLoss::cross_entropy)
    value = scale(sum(mul(exp(log_pt), log_ps)), -1);
  else
    value = sum(square(sub(exp(log_ps), exp(log_pt))));
  return with_labels(scale(value, row_plan.factor), student, labels, label_weight(o, bool(labels)));
}

KdReduction kd_reduction(const std::string& name) {
  const std::vector<std::string> names = {"batchmean",    "mean",   "sum",
                                          "torchdistill", "cls_kd", "mse_of_probs"};
  for (size_t i = 0; i < names.size(); i++)
    if (names[i] == name) return KdReduction(i);
  fail_input("unknown reduction '", name, "'", did_you_mean(name, names));
}

Method kd_method() {
  Method method;
  method.name = "kd";
  method.summary = "the student matches the teacher's softened class probabilities";
  method.source = "Hinton et al. 2015, arXiv 1503.02531, eq. 1";
  method.weight = 0.9;
  method.ce_weight = 0.1;
  method.options = {
      {"T", KdOptions().temperature, "temperature of both soft-maxes", "RepDistiller, mdistiller"},
      {"reduction", std::string("batchmean"),
       "batchmean, mean, sum, torchdistill, cls_kd or mse_of_probs", "RepDistiller, mdistiller"},
      {"alpha", 0.5,
       "torchdistill and cls_kd: their own weighting of labels (set ce_weight = 0 beside it)"},
      {"logit_standardization", false,
       "compare standardized logits (Sun et al. 2024, arXiv 2403.01427)"},
      {"eps", KdOptions().eps, "added to the deviation of the logits",
       "official code of Sun et al. 2024"}};
  method.explanation.symbols = {
      {"z_s, z_t", "(n, K)", "logits of student and teacher; the teacher gets no gradient"},
      {"y", "(n)", "labels, or target probabilities (n, K)"},
      {"p_s, p_t", "(n, K)", "softened class probabilities"}};
  method.explanation.equations = {
      {"1", "p = softmax(z / T), of student and teacher"},
      {"2", "z <- (z - mean z) / (eps + deviation z) before 1, when logit_standardization"},
      {"3",
       "KD = sum_ik of p_t (log p_t - log p_s), or of -p_t log p_s (cls_kd), or of "
       "(p_s - p_t)^2 (mse_of_probs)"},
      {"4",
       "KD <- KD * T^2 / n (batchmean, cls_kd: times alpha), T^2 / (n K) (mean, "
       "mse_of_probs), T^2 (sum), (1 - alpha) T^2 / n (torchdistill; 1 / n where alpha is 0)"},
      {"5", "KD <- KD + alpha CE(z_s, y) (torchdistill), + (1 - alpha) CE(z_s, y) (cls_kd)"},
      {"6", "dKD / dz_s = factor of 4 / T * (p_s - p_t), in the pass that computes 1 to 4"}};
  method.explanation.cases = {"kd.hinton", "kd.logit_standardization"};
  method.make = [](const Options& options, const nn::Scope&, const Setup&) {
    KdOptions o;
    o.temperature = options.number("T");
    o.reduction = kd_reduction(options.text("reduction"));
    o.alpha = options.number("alpha");
    o.logit_standardization = options.flag("logit_standardization");
    o.eps = options.number("eps");
    if (!(o.temperature > 0) || std::isinf(o.temperature))
      fail_input("T must be a finite number > 0, got ", o.temperature);
    if (!(o.eps >= 0)) fail_input("eps must be >= 0, got ", o.eps);
    Instance instance;
    instance.loss = [o](const Step& step) {
      const Tensor& labels = step.batch.targets ? step.batch.targets : step.batch.labels;
      Tensor total;
      for (const Teacher& teacher : step.teachers) {
        if (!teacher.logits)
          fail_input("kd: teacher '", teacher.name,
                     "' gives no logits; store them or choose another method");
        if (teacher.logits.shape() != step.student.logits.shape())
          fail_input("kd: teacher '", teacher.name, "' gives logits ", teacher.logits.shape(),
                     ", the student ", step.student.logits.shape(),
                     "; choose a teacher of the same classes or another method");
        Tensor loss = kd_loss(step.student.logits, teacher.logits, labels, o);
        total = total ? add(total, loss) : loss;
      }
      size_t count = step.teachers.size();
      return count == 1 ? total : scale(total, 1 / double(count));
    };
    return instance;
  };
  return method;
}

PUPIL_SAMPLES(kd_loss) {
  auto f = [](KdOptions o, bool plain = false) {
    return [=](const std::vector<Tensor>& v) {
      Tensor teacher = v[1].detach();
      return plain ? kd_loss_plain(v[0], teacher, {}, o) : kd_loss(v[0], teacher, {}, o);
    };
  };
  for (bool standardize : {false, true})
    for (auto reduction :
         {KdReduction::batchmean, KdReduction::mean, KdReduction::sum, KdReduction::torchdistill,
          KdReduction::cls_kd, KdReduction::mse_of_probs}) {
      KdOptions o;
      o.reduction = reduction;
      o.logit_standardization = standardize;
      std::string name = concat("reduction ", int(reduction), standardize ? " standardized" : "");
      s.add(name, {{6, 10}, {6, 10}}, f(o), {.low = -3, .high = 3, .constants = {1}});
    }
  KdOptions cold;
  cold.temperature = 1;
  s.add("wide", {{2, 400}, {2, 400}}, f(cold), {.low = -6, .high = 6, .constants = {1}});
  s.add("one row", {{1, 3}, {1, 3}}, f(cold), {.constants = {1}});
  s.add("one class", {{4, 1}, {4, 1}}, f(cold), {.constants = {1}});
  s.add("plain", {{6, 10}, {6, 10}}, f(cold, true), {.constants = {1}});
  s.add_error("other classes", {{4, 5}, {4, 6}}, f(cold));
  s.add_error("no rows", {{0, 5}, {0, 5}}, f(cold));
  KdOptions frozen;
  frozen.temperature = 0;
  s.add_error("temperature 0", {{4, 5}, {4, 5}}, f(frozen));
}

}  // namespace pupil::methods
