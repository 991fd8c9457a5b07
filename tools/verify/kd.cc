// kd.*: logit distillation and the cross-entropies of its catalogue.
#include "../../methods/kd.h"

#include "case.h"

namespace pupil::verify {
namespace {

void hinton(Case& c) {
  methods::KdOptions o;
  o.temperature = c.number("temperature", o.temperature);
  try {
    o.reduction = methods::kd_reduction(c.text("reduction", "batchmean"));
  } catch (const InputError& error) {
    throw Unsupported(error.what());
  }
  o.logit_standardization = c.flag("logit_standardization", false);
  o.eps = c.number("eps", o.eps);
  for (auto [name, value] : {std::pair{"alpha", &o.alpha}, {"beta", &o.beta}}) {
    c.ignore(name);
    if (c.has_attribute(name)) *value = c.number(name);
  }
  c.result("loss", methods::kd_loss(c.get("in.logits_s"), c.constant("in.logits_t"),
                                    c.get_if("in.labels"), o));
}

void logit_standardization(Case& c) {
  c.result("z", methods::standardize_logits(c.get("in.logits"), c.number("eps", 1e-7)).values);
}

void label_cross_entropy(Case& c) {
  double smoothing = c.number("label_smoothing", 0);
  std::string reduction = c.text("reduction", "mean");
  if (reduction != "mean" && reduction != "none") throw Unsupported("reduction = " + reduction);
  auto f = reduction == "mean" ? cross_entropy : cross_entropy_rows;
  c.result("loss", f(c.get("in.logits"), c.get("in.labels"), {.smoothing = smoothing}));
}

void soft_target_cross_entropy(Case& c) {
  c.result("loss", cross_entropy(c.get("in.logits"), c.get("in.target")));
}

}  // namespace

void add_kd(Adapters& all) {
  all["kd.hinton"] = hinton;
  all["kd.logit_standardization"] = logit_standardization;
  all["kd.cross_entropy"] = label_cross_entropy;
  all["kd.soft_target_ce"] = soft_target_cross_entropy;
}

}  // namespace pupil::verify
