#include "transmiter.h"

#include <algorithm>
#include <numeric>

#include "../autograd/samples.h"
#include "../tensor/launch.h"
#include "../tensor/memory.h"
#include "kd.h"
#include "method.h"
#include "row_loss.h"

namespace pupil::methods {

constexpr double kDeviationEps = 1e-6;  // beside the deviation, on the way in only
constexpr double kNormEps = 1e-5;

Basis basis_named(const std::string& name) {
  const std::vector<std::string> names = {"expm", "cayley", "frozen"};
  for (size_t i = 0; i < names.size(); i++)
    if (names[i] == name) return Basis(i);
  fail_input("unknown basis '", name, "'", did_you_mean(name, names));
}

Adapter::Adapter(const nn::Scope& scope, const AdapterOptions& o)
    : options_(o),
      norm_((scope / "network" / 0 / "mlp_layers" / 0) / 0, o.latent, kNormEps),
      first_((scope / "network" / 0 / "mlp_layers" / 0) / 1, o.latent, o.hidden,
             {nn::Init::uniform, std::sqrt(6 / double(o.latent + o.hidden))},
             nn::fan_in_uniform(o.latent)),
      second_((scope / "network" / 0 / "mlp_layers" / 0) / 4, o.hidden, o.latent, {nn::Init::zeros},
              {nn::Init::zeros}) {
  PUPIL_CHECK(o.latent >= o.logits && o.logits > 1 && o.hidden > 0, "adapter: ", o.logits,
              " logits, ", o.latent, " latent dimensions, ", o.hidden, " hidden units");
  nn::Scope in = scope / "network" / 0 / "in_proj",
            out = scope / "network" / 0 / "transfer_out_proj";
  Shape shape{o.latent, o.logits};
  if (o.basis == Basis::free) {
    in_weight_ = in.param("weight", shape, {nn::Init::zeros});
    in_bias_ = in.param("bias", {o.latent}, {nn::Init::zeros});
    out_weight_ = out.param("weight", shape, {nn::Init::zeros});
    out.param("bias", {o.latent}, {nn::Init::zeros});  // in the file, used nowhere
    return;
  }
  nn::Scope weight = in / "parametrizations" / "weight";
  skew_ = weight.param("original", shape, {nn::Init::zeros});
  base_ = (weight / 0).buffer("base", {o.latent, o.latent}, {nn::Init::normal, 1});
  if (o.basis == Basis::frozen) scope.store.freeze(weight.path + ".original");
}

void Adapter::draw_base() { copy_into(base_, haar(base_)); }

Tensor Adapter::basis() const {
  switch (options_.basis) {
    case Basis::free:
      return in_weight_;
    case Basis::frozen:
      return slice(base_, 1, 0, options_.logits);  // [transmiter 2]
    case Basis::cayley:
      return orthogonal(skew_, base_, OrthogonalMap::cayley);  // [transmiter 2]
    default:
      return orthogonal(skew_, base_, OrthogonalMap::expm);  // [transmiter 2]
  }
}

Tensor Adapter::operator()(const Tensor& logits) const {
  PUPIL_CHECK(logits.rank() == 2 && logits.dim(1) == options_.logits, "adapter: logits (n, ",
              options_.logits, ") expected, got ", logits.shape());
  StandardizedLogits z = standardize_logits(logits, kDeviationEps);  // [transmiter 1]
  Tensor in = basis(), out = out_weight_ ? out_weight_ : in;
  Tensor h = linear(z.values, in, in_bias_);                          // [transmiter 3]
  Tensor r = scale(second_(gelu(first_(norm_(h)))), options_.alpha);  // [transmiter 4]
  Tensor latent = add(h, r);
  if (in_bias_) latent = sub(latent, in_bias_);
  return add(mul(matmul(latent, out), z.deviation), z.mean);  // [transmiter 5]
}

Adapter Adapter::rotated(const nn::Scope& to, const Tensor& rotation, Basis form) const {
  NoGrad no_grad;
  PUPIL_CHECK(options_.basis != Basis::free, "adapter: a free basis cannot be rotated");
  int64_t d = options_.latent, m = options_.logits;
  AdapterOptions o = options_;
  o.basis = form;
  Adapter result(to, o);
  for (auto [target, source] :
       {std::pair{result.norm_.weight, norm_.weight}, std::pair{result.norm_.bias, norm_.bias},
        std::pair{result.first_.weight, first_.weight}, std::pair{result.first_.bias, first_.bias},
        std::pair{result.second_.weight, second_.weight},
        std::pair{result.second_.bias, second_.bias}})
    copy_into(target, source);
  Tensor whole = options_.basis == Basis::frozen ? base_ : Tensor();  // base expm(A), (D, D)
  if (!whole)
    whole =
        orthogonal(cat({skew_, zeros({d, d - m}, skew_.dtype())}, 1), base_,
                   options_.basis == Basis::cayley ? OrthogonalMap::cayley : OrthogonalMap::expm);
  Tensor turned =
      matmul(slice(whole, 1, 0, m).to(DType::f64), rotation.to(DType::f64), false, true);
  turned = turned.to(skew_.dtype());  // [transmiter 10]
  if (form == Basis::free) {
    copy_into(result.in_weight_, turned);
    copy_into(result.out_weight_, turned);
  } else {
    copy_into(result.base_, cat({turned, slice(whole, 1, m, d)}, 1));
  }
  return result;
}

// [transmiter 6] [transmiter 7] One row: both soft-maxes, the loss and its gradient; columns from
// `classes` on get 0.
template <class T>
struct ExtractionRow {
  const T *pred, *teacher;
  T* gradient;
  acc_t<T>* loss;
  int64_t columns, classes;
  double inverse_pred, inverse_teacher;  // temperatures
  double kl_factor, mse_factor;          // of a row's sums
  template <class Team>
  PUPIL_HD void operator()(const Team& team, int64_t row) const {
    using A = acc_t<T>;
    const T *z = pred + row * columns, *t = teacher + row * classes;
    T* g = gradient + row * columns;
    auto log_sum = [&](const T* x, A inverse, A top) {
      return log(team.reduce(classes, A(0), Add{},
                             [&](int64_t j) { return exp((A(x[j]) - top) * inverse); }));
    };
    auto maximum = [&](const T* x) {
      return team.reduce(classes, A(-INFINITY), Max{}, [&](int64_t j) { return A(x[j]); });
    };
    A scale_z = A(inverse_pred), scale_t = A(inverse_teacher);
    A top_z = maximum(z), top_t = maximum(t);
    A sum_z = log_sum(z, scale_z, top_z), sum_t = log_sum(t, scale_t, top_t);
    auto log_q = [&](int64_t j) { return (A(z[j]) - top_z) * scale_z - sum_z; };
    auto log_p = [&](int64_t j) { return (A(t[j]) - top_t) * scale_t - sum_t; };
    A value = team.reduce(classes, A(0), Add{}, [&](int64_t j) {
      A lp = log_p(j), d = A(z[j]) - A(t[j]);
      return A(kl_factor) * exp(lp) * (lp - log_q(j)) + A(mse_factor) * d * d;
    });
    team.each(1, [&](int64_t) { loss[row] = value; });
    team.each(columns, [&](int64_t j) {
      g[j] = T(j >= classes ? A(0)
                            : A(kl_factor) * scale_z * (exp(log_q(j)) - exp(log_p(j))) +
                                  A(2) * A(mse_factor) * (A(z[j]) - A(t[j])));
    });
  }
};

namespace {

void check_extraction(const Tensor& pred, const Tensor& teacher, const ExtractionLossOptions& o) {
  PUPIL_CHECK(pred.rank() == 2 && teacher.rank() == 2 && pred.dim(0) == teacher.dim(0) &&
                  pred.dim(0) > 0 && teacher.dim(1) > 0 && teacher.dim(1) <= pred.dim(1),
              "extraction_loss: pred ", pred.shape(), " and teacher ", teacher.shape());
  PUPIL_CHECK(o.temperature > 0 && o.teacher_temperature > 0, "extraction_loss: temperatures ",
              o.temperature, " and ", o.teacher_temperature, " must be > 0");
  require_finite("extraction_loss", "teacher logits", teacher);
}

struct Factors {  // of the sums over all rows and classes
  double kl, mse;
  Factors(const Tensor& teacher, const ExtractionLossOptions& o)
      : kl(o.weight * o.temperature * o.temperature * o.teacher_temperature /
           double(teacher.dim(0))),
        mse(o.mse_weight / 1e4 / double(teacher.numel())) {}
};

}  // namespace

Tensor extraction_loss(const Tensor& pred, const Tensor& teacher, const ExtractionLossOptions& o) {
  if (plain_mode()) return extraction_loss_plain(pred, teacher, o);
  check_extraction(pred, teacher, o);
  Tensor z = pred.contiguous().detach(), t = teacher.detach().to(z.dtype()).contiguous();
  int64_t n = z.dim(0);
  DType acc = acc_dtype(z.dtype());
  Tensor gradient = empty_like(z), losses = empty({n}, acc, z.device());
  Factors factor(teacher, o);
  dispatch(z.dtype(), [&](auto type) {
    using T = typename decltype(type)::type;
    using A = acc_t<T>;
    rows(z.device(), n,
         ExtractionRow<T>{z.data<T>(), t.data<T>(), gradient.data<T>(), losses.data<A>(), z.dim(1),
                          t.dim(1), 1 / o.temperature, 1 / (o.temperature * o.teacher_temperature),
                          factor.kl, factor.mse},
         8 * z.dim(1));
  });
  return row_loss("extraction_loss", pred, teacher, losses, std::move(gradient));
}

Tensor extraction_loss_plain(const Tensor& pred, const Tensor& teacher,
                             const ExtractionLossOptions& o) {
  check_extraction(pred, teacher, o);
  DType acc = acc_dtype(pred.dtype());
  Tensor z = slice(pred.dtype() == acc ? pred : to_dtype(pred, acc), 1, 0, teacher.dim(1));
  Tensor t = teacher.detach().to(acc);
  Factors factor(teacher, o);
  Tensor log_p = log_softmax(t, o.temperature * o.teacher_temperature);
  Tensor log_q = log_softmax(z, o.temperature);
  Tensor loss = scale(sum(mul(exp(log_p), sub(log_p, log_q))), factor.kl);  // [transmiter 6]
  if (o.mse_weight != 0) loss = add(loss, scale(sum(square(sub(z, t))), factor.mse));
  return loss;
}

Tensor logit_noise(const Tensor& logits, const Tensor& normal, double u, double alpha) {
  if (!(u > 0.5)) return logits;  // [transmiter 8]
  return add(logits, mul(normal, scale(standardize_logits(logits).deviation, alpha)));
}

double warmup_cosine(int64_t step, double warmup, int64_t total) {
  double k = double(step);
  if (k < warmup) return (k + 1) / warmup;  // [transmiter 9]
  return 0.5 * (1 + std::cos(M_PI * (k - warmup) / (double(total) - warmup)));
}

Batches shuffled_batches(int64_t n, int64_t batch, uint64_t seed) {
  PUPIL_CHECK(n > 0 && batch > 0, "shuffled_batches: ", n, " rows in batches of ", batch);
  return [=](int64_t epoch) {
    std::vector<int64_t> order(static_cast<size_t>(n));
    std::iota(order.begin(), order.end(), 0);
    RngKey key{seed, stream_id("transmiter batches"), uint64_t(epoch)};
    for (int64_t i = n - 1; i > 0; i--)  // Fisher and Yates
      std::swap(order[size_t(i)], order[size_t(random_bits(key, i) % uint64_t(i + 1))]);
    std::vector<Tensor> batches;
    for (int64_t begin = 0; begin < n; begin += batch) {
      int64_t size = std::min(batch, n - begin);
      batches.push_back(
          from(std::span<const int64_t>(order).subspan(size_t(begin), size_t(size)), {size}));
    }
    return batches;
  };
}

namespace {

struct Fill {
  float* to;
  RngKey key;
  void operator()(int64_t i) const { to[i] = float(normal(key, i)); }
};

Tensor normal_like(const Tensor& x, const RngKey& key) {
  Tensor t = empty(x.shape());
  parallel_for(t.numel(), t.numel() * 16, [f = Fill{t.data<float>(), key}](int64_t i) { f(i); });
  return t.to(x.dtype());
}

struct Plan {
  double lr, weight_decay, warmup;  // warmup: a share of all steps
  bool whole_warmup;                // rounded down to whole steps
  int64_t epochs;
  const std::function<void()>& before_step;
};

// AdamW on everything that `store` trains; loss(rows of the batch, step).
template <class Loss>
Curve train(nn::Store& store, const Plan& plan, const Batches& batches, const Loss& loss) {
  nn::Group group{{}, plan.lr, plan.weight_decay};
  for (const nn::Param& p : store.params())
    if (!p.buffer) group.names.push_back(p.name);
  nn::OptimizerOptions adamw;
  adamw.algorithm = nn::Algorithm::adamw;
  nn::Optimizer optimizer(store, {group}, adamw);
  Curve curve;
  int64_t total = 0;
  double warmup = 0;
  for (int64_t epoch = 0; epoch < plan.epochs; epoch++) {
    std::vector<Tensor> order = batches(epoch);
    if (epoch == 0) {
      total = plan.epochs * int64_t(order.size());
      warmup = plan.warmup * double(total);
      if (plan.whole_warmup) warmup = std::floor(warmup);
    }
    for (const Tensor& rows : order) {
      if (plan.before_step) plan.before_step();
      int64_t step = int64_t(curve.loss.size());
      double factor = warmup_cosine(step, warmup, total);
      StepScope arena;
      optimizer.zero_grad();
      Tensor value = loss(rows, step);
      curve.loss.push_back(value.item());
      curve.lr.push_back(plan.lr * factor);
      if (!std::isfinite(curve.loss.back()))
        throw Error(concat("transmiter: the loss of step ", step, " is ", curve.loss.back(),
                           "; a lower learning rate may help"));
      backward(value);
      optimizer.step(factor);
    }
  }
  return curve;
}

}  // namespace

Curve extract(nn::Store& store, const Adapter& adapter, const Tensor& weak, const Tensor& tuned,
              const ExtractionOptions& o, const Batches& batches) {
  Plan plan{o.lr, o.weight_decay, o.warmup, false, o.epochs, o.before_step};
  return train(store, plan, batches, [&](const Tensor& rows, int64_t step) {
    Tensor z = index_select(weak, rows);
    if (o.noise > 0) {
      Rng rng(o.seed, uint64_t(step));
      double u = uniform(rng.next(), 0);
      RngKey key = rng.next();
      if (u > 0.5) z = logit_noise(z, normal_like(z, key), u, o.noise);
    }
    return extraction_loss(adapter(z), index_select(tuned, rows), o.loss);
  });
}

Curve polish(nn::Store& store, const Adapter& adapter, const Tensor& strong, const Tensor& labels,
             int64_t classes, const PolishOptions& o, const Batches& batches) {
  std::vector<int64_t> columns = o.columns;
  if (columns.empty()) {
    columns.resize(size_t(classes));
    std::iota(columns.begin(), columns.end(), 0);
  }
  Tensor kept = from(std::span<const int64_t>(columns), {int64_t(columns.size())});
  Plan plan{o.lr, o.weight_decay, 0.1, true, o.epochs, o.before_step};
  return train(store, plan, batches, [&](const Tensor& rows, int64_t) {
    Tensor z = permute(adapter(index_select(strong, rows)), {1, 0});
    Tensor wanted = empty({rows.dim(0)}, DType::i64);
    for (int64_t i = 0; i < rows.dim(0); i++)
      wanted.data<int64_t>()[i] = labels.data<int64_t>()[rows.data<int64_t>()[i]];
    return cross_entropy(permute(index_select(z, kept), {1, 0}), wanted);  // [transmiter 11]
  });
}

Method transmiter_pipeline() {
  AdapterOptions a;
  ExtractionOptions e;
  PolishOptions p;
  Method m;
  m.name = "transmiter";
  m.summary = "a weak model's adaptation as an adapter on logits, carried to a strong model";
  m.source = "Park et al., AAAI 2026, arXiv 2508.08604; code mlvlab/TransMiter@f58085c";
  const std::string code = "official code", script = "official script", ours = "ours";
  m.options = {
      {"transmiter.logits", a.logits, "M: task and auxiliary classes", "paper"},
      {"transmiter.latent", int64_t(0), "D, at least M; 0: M", script},
      {"transmiter.hidden", int64_t(0), "H; 0: 4 D", code},
      {"transmiter.basis", std::string("expm"), "how W is held: expm, cayley or frozen",
       "expm: official code"},
      {"transmiter.alpha", a.alpha, "factor of the MLP", code},
      {"transmiter.temperature", e.loss.temperature, "tau", script},
      {"transmiter.teacher_temperature", e.loss.teacher_temperature, "tau'", script},
      {"transmiter.noise", e.noise, "strength in 8; 0: none", script},
      {"transmiter.lr", e.lr, "of AdamW", script},
      {"transmiter.weight_decay", e.weight_decay, "of every parameter", script},
      {"transmiter.warmup", e.warmup, "w as a share of all steps", code},
      {"transmiter.epochs", e.epochs, "of extraction", script},
      {"transmiter.batch", int64_t(128), "samples in a step", script},
      {"plus.lr", p.lr, "of TransMiter+", ours},
      {"plus.weight_decay", p.weight_decay, "of TransMiter+", ours},
      {"plus.epochs", p.epochs, "of TransMiter+; its warm-up is a tenth of the steps", ours},
      {"plus.batch", int64_t(128), "of TransMiter+", ours}};
  m.explanation.symbols = {
      {"z, z_ft", "(n, M), (n, C)", "zero-shot and fine-tuned logits of the weak model, constants"},
      {"W", "(D, M)",
       "orthonormal columns; B (D, D) a random rotation, X (D, M) trained, 0 at first"},
      {"mu, sd", "(n, 1)", "mean and deviation of a row of z, divisor M - 1"},
      {"A1, b1, A2, b2", "(H, D), (H), (D, H), (D)", "the MLP; A2 and b2 are 0 at first: z' = z"},
      {"R", "(M, M)", "basis change, see procrustes"}};
  m.explanation.equations = {
      {"1", "x = (z - mu) / (sd + 1e-6)"},
      {"2",
       "W = first M columns of B expm(A), A = tril(X, -1) - tril(X, -1)'; cayley: "
       "B (I - A/2)^-1 (I + A/2); frozen: B"},
      {"3", "h = x W' (eq. 5)"},
      {"4", "r = A2 GELU(A1 LayerNorm(h) + b1) + b2 (eq. 6)"},
      {"5", "z' = ((h + alpha r) W) sd + mu, without the 1e-6"},
      {"6",
       "L = tau^2 tau' / n sum_ic p (log p - log q), p = softmax(z_ft / (tau tau')), "
       "q = softmax(z'[:, :C] / tau) (eq. 7)"},
      {"7", "dL/dz' = tau tau' / n (q - p), 0 on auxiliary columns"},
      {"8", "in half of the batches z <- z + noise sd N(0, 1) before 1"},
      {"9", "lr_k = lr (k + 1) / w for k < w, then lr (1 + cos(pi (k - w) / (T - w))) / 2"},
      {"10", "for the strong model W <- W R' (eq. 12), the MLP unchanged"},
      {"11", "TransMiter+: cross-entropy of z'[:, base classes] of the strong model, with labels"}};
  m.explanation.cases = {
      "transmiter.standardise", "transmiter.adapter",  "transmiter.extract_loss",
      "transmiter.noise",       "transmiter.schedule", "transmiter.train_step",
      "transmiter.trajectory",  "transmiter.transfer", "transmiter.plus_trajectory"};
  return m;
}

PUPIL_SAMPLES(extraction_loss) {
  auto f = [](ExtractionLossOptions o, bool plain) {
    return [=](const std::vector<Tensor>& v) {
      Tensor teacher = v[1].detach();
      return plain ? extraction_loss_plain(v[0], teacher, o) : extraction_loss(v[0], teacher, o);
    };
  };
  ExtractionLossOptions both;
  both.temperature = 2;
  both.weight = 3;
  both.mse_weight = 500;
  for (bool plain : {false, true}) {
    std::string form = plain ? "plain " : "";
    s.add(form + "default", {{5, 9}, {5, 4}}, f({}, plain),
          {.low = -3, .high = 3, .constants = {1}});
    s.add(form + "all columns", {{4, 6}, {4, 6}}, f(both, plain),
          {.low = -3, .high = 3, .constants = {1}});
    s.add(form + "wide", {{2, 700}, {2, 300}}, f(both, plain),
          {.low = -3, .high = 3, .constants = {1}});
    s.add(form + "one class", {{3, 4}, {3, 1}}, f({}, plain), {.constants = {1}});
  }
  s.add_error("more classes", {{3, 4}, {3, 5}}, f({}, false));
  s.add_error("other rows", {{3, 4}, {2, 4}}, f({}, false));
  s.add_error("no rows", {{0, 4}, {0, 4}}, f({}, false));
}

}  // namespace pupil::methods
