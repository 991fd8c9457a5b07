// Losses of two tensors of one shape, composed of other ops: none is what a training step spends
// its time on (cross_entropy has kernels). bf16 is widened first, as every loss is kept in f32.
#include "broadcast.h"
#include "index.h"
#include "unary.h"

namespace pupil {

// x log x with 0 log 0 = 0.
struct XLogX {
  static constexpr bool saves_x = true, saves_y = false;
  template <class A>
  PUPIL_HD A fwd(A x) const {
    return x == A(0) ? A(0) : x * log(x);
  }
  template <class A>
  PUPIL_HD A bwd(A x, A, A gy) const {
    return gy * (log(x) + A(1));
  }
};

namespace {

Tensor wide(const Tensor& x) { return to_dtype(x, acc_dtype(x.dtype())); }

void check(const char* op, const Tensor& x, const Tensor& target, Reduction reduction) {
  require_floating(op, x);
  require_floating(op, target);
  bool means = reduction == Reduction::mean || reduction == Reduction::batch_mean;
  PUPIL_CHECK(x.shape() == target.shape(), op, ": ", x.shape(), " and target ", target.shape());
  PUPIL_CHECK(!means || x.numel() > 0, op, ": mean of no elements, ", x.shape());
}

Tensor reduced(const char* op, const Tensor& losses, Reduction reduction) {
  switch (reduction) {
    case Reduction::none:
      return losses;
    case Reduction::sum:
      return sum(losses);
    case Reduction::mean:
      return mean(losses);
    case Reduction::batch_mean:
      break;
  }
  PUPIL_CHECK(losses.rank() >= 1, op, ": batch mean of a scalar");
  return scale(sum(losses), 1 / double(losses.dim(0)));
}

Tensor difference(const Tensor& x, const Tensor& target) { return sub(wide(x), wide(target)); }

// h = |x - target| -> h^2 / 2 up to h = delta, then delta (h - delta / 2).
Tensor huber(const Tensor& x, const Tensor& target, double delta) {
  Tensor h = abs(difference(x, target)), within = clamp(h, 0, delta);
  return mul(within, sub(h, scale(within, 0.5)));
}

}  // namespace

Tensor mse_loss(const Tensor& x, const Tensor& target, Reduction reduction) {
  check("mse_loss", x, target, reduction);
  return reduced("mse_loss", square(difference(x, target)), reduction);
}

Tensor l1_loss(const Tensor& x, const Tensor& target, Reduction reduction) {
  check("l1_loss", x, target, reduction);
  return reduced("l1_loss", abs(difference(x, target)), reduction);
}

Tensor huber_loss(const Tensor& x, const Tensor& target, double delta, Reduction reduction) {
  check("huber_loss", x, target, reduction);
  PUPIL_CHECK(delta > 0, "huber_loss: delta ", delta, " for ", x.shape());
  return reduced("huber_loss", huber(x, target, delta), reduction);
}

Tensor smooth_l1_loss(const Tensor& x, const Tensor& target, double beta, Reduction reduction) {
  if (beta == 0) return l1_loss(x, target, reduction);
  check("smooth_l1_loss", x, target, reduction);
  PUPIL_CHECK(beta > 0, "smooth_l1_loss: beta ", beta, " for ", x.shape());
  return reduced("smooth_l1_loss", scale(huber(x, target, beta), 1 / beta), reduction);
}

Tensor kl_div(const Tensor& log_p, const Tensor& target, bool log_target, Reduction reduction) {
  check("kl_div", log_p, target, reduction);
  Tensor input = wide(log_p), t = wide(target);
  Tensor losses =
      log_target ? mul(exp(t), sub(t, input)) : sub(unary<XLogX>("kl_div", t), mul(t, input));
  return reduced("kl_div", losses, reduction);
}

Tensor bce_with_logits(const Tensor& logits, const Tensor& target, Reduction reduction) {
  check("bce_with_logits", logits, target, reduction);
  Tensor x = wide(logits);
  return reduced("bce_with_logits", sub(softplus(x), mul(x, wide(target))), reduction);
}

Tensor nll_loss(const Tensor& log_p, const Tensor& labels, Reduction reduction) {
  require_floating("nll_loss", log_p);
  PUPIL_CHECK(
      log_p.rank() == 2 && labels.dtype() == DType::i64 && labels.shape() == Shape{log_p.dim(0)},
      "nll_loss: (n, classes) and labels (n) expected, got ", log_p.shape(), " and ",
      labels.shape(), " ", name_of(labels.dtype()));
  PUPIL_CHECK(reduction == Reduction::none || reduction == Reduction::sum || log_p.dim(0) > 0,
              "nll_loss: mean of no rows, ", log_p.shape());
  int64_t n = log_p.dim(0);
  Tensor at = checked_index("nll_loss", labels, log_p.dim(1));
  Tensor picked = gather(wide(log_p), 1, view(at, {n, 1}));
  return reduced("nll_loss", scale(view(picked, {n}), -1), reduction);
}

namespace {

[[maybe_unused]] void loss_samples(auto& s, auto f, double low = -1, double high = 1) {
  auto by = [f](Reduction reduction) { return [=](auto& v) { return f(v[0], v[1], reduction); }; };
  test::SampleOptions range{.low = low, .high = high};
  s.add("mean", {{4, 5}, {4, 5}}, by(Reduction::mean), range);
  s.add("sum", {{2, 3, 4}, {2, 3, 4}}, by(Reduction::sum), range);
  s.add("none", {{4, 5}, {4, 5}}, by(Reduction::none), range);
  double middle = (low + high) / 2;  // where x is the target, and at a logit of 0
  s.add("equal values", {{2, 3}, {2, 3}}, by(Reduction::sum), {.low = middle, .high = middle});
  s.add("scalars", {{}, {}}, by(Reduction::mean), range);
  s.add("one element", {{1}, {1}}, by(Reduction::mean), range);
  s.add("empty", {{0, 3}, {0, 3}}, by(Reduction::sum), range);
  s.add(
      "transposed", {{3, 4}, {4, 3}},
      [f](auto& v) {
        return f(permute(v[0], {1, 0}), v[1], Reduction::mean);
      },
      range);
  s.add_error("shapes", {{4, 1}, {4}}, by(Reduction::mean));
  s.add_error("mean of nothing", {{0, 3}, {0, 3}}, by(Reduction::mean));
  s.add_error("integers", {{3}, {3}},
              [f](auto& v) { return f(v[0], v[1].to(DType::i64), Reduction::mean); });
}

}  // namespace

PUPIL_SAMPLES(mse_loss) { loss_samples(s, mse_loss); }
PUPIL_SAMPLES(l1_loss) { loss_samples(s, l1_loss); }
PUPIL_SAMPLES(huber_loss) {
  auto with = [](double delta) {
    return
        [=](const Tensor& x, const Tensor& t, Reduction r) { return huber_loss(x, t, delta, r); };
  };
  loss_samples(s, with(0.5));
  s.add_error("delta", {{3}, {3}}, [=](auto& v) { return with(0)(v[0], v[1], Reduction::mean); });
}
PUPIL_SAMPLES(smooth_l1_loss) {
  auto with = [](double beta) {
    return [=](const Tensor& x, const Tensor& t, Reduction r) {
      return smooth_l1_loss(x, t, beta, r);
    };
  };
  loss_samples(s, with(0.3));
  s.add("beta 0", {{4, 5}, {4, 5}}, [=](auto& v) { return with(0)(v[0], v[1], Reduction::sum); });
  s.add_error("beta", {{3}, {3}}, [=](auto& v) { return with(-1)(v[0], v[1], Reduction::mean); });
}
PUPIL_SAMPLES(kl_div) {
  auto with = [](bool log_target) {
    return
        [=](const Tensor& x, const Tensor& t, Reduction r) { return kl_div(x, t, log_target, r); };
  };
  loss_samples(s, with(false), 0.1, 1);
  s.add("log target", {{4, 5}, {4, 5}},
        [=](auto& v) { return with(true)(v[0], v[1], Reduction::batch_mean); });
  s.add("target 0", {{4, 5}}, [=](auto& v) {
    return with(false)(v[0], zeros(v[0].shape(), v[0].dtype(), v[0].device()),
                       Reduction::batch_mean);
  });
  s.add_error("batch mean of a scalar", {{}, {}},
              [=](auto& v) { return with(false)(v[0], v[1], Reduction::batch_mean); });
}

PUPIL_SAMPLES(bce_with_logits) { loss_samples(s, bce_with_logits, -2, 2); }
PUPIL_SAMPLES(nll_loss) {
  auto of = [](std::vector<int64_t> labels, Reduction reduction) {
    return [=](auto& v) {
      return nll_loss(v[0], from(labels, {int64_t(labels.size())}).to(v[0].device()), reduction);
    };
  };
  s.add("mean", {{4, 5}}, of({0, 4, 2, 2}, Reduction::mean));
  s.add("none", {{4, 5}}, of({0, 4, 2, 2}, Reduction::none));
  s.add("one element", {{1, 1}}, of({0}, Reduction::sum));
  s.add("empty", {{0, 3}}, of({}, Reduction::sum));
  s.add("transposed", {{3, 2}}, [](auto& v) {
    Tensor labels = from(std::vector<int64_t>{2, 0}, {2}).to(v[0].device());
    return nll_loss(permute(v[0], {1, 0}), labels);
  });
  s.add_error("label too large", {{2, 3}}, of({0, 3}, Reduction::mean));
  s.add_error("negative label", {{2, 3}}, of({0, -1}, Reduction::mean));
  s.add_error("label count", {{2, 3}}, of({0}, Reduction::mean));
  s.add_error("mean of nothing", {{0, 3}}, of({}, Reduction::mean));
}

}  // namespace pupil
