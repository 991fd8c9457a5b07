// ops.*: losses and distances of tensor/ops.h.
#include "../../tensor/ops.h"
#include "case.h"

namespace pupil::verify {
namespace {

// f(reduction) -> the loss, which a case calls y when nothing is reduced.
template <class F>
void reduce(Case& c, F&& f) {
  const std::map<std::string, Reduction> known = {{"mean", Reduction::mean},
                                                  {"sum", Reduction::sum},
                                                  {"none", Reduction::none},
                                                  {"batchmean", Reduction::batch_mean}};
  std::string name = c.text("reduction", "mean");
  auto reduction = known.find(name);
  if (reduction == known.end()) throw Unsupported("reduction = " + name);
  c.result(name == "none" ? "y" : "loss", f(reduction->second));
}

template <Tensor (*f)(const Tensor&, const Tensor&, Reduction)>
void loss(Case& c) {
  reduce(c, [&](Reduction r) { return f(c.get("in.x"), c.get("in.target"), r); });
}

void bce_case(Case& c) {
  reduce(c,
         [&](Reduction r) { return bce_with_logits(c.get("in.logits"), c.get("in.target"), r); });
}

void nll_case(Case& c) {
  reduce(c, [&](Reduction r) { return nll_loss(c.get("in.logp"), c.get("in.target"), r); });
}

void huber_case(Case& c) {
  double delta = c.number("delta", 1);
  reduce(c, [&](Reduction r) { return huber_loss(c.get("in.x"), c.get("in.target"), delta, r); });
}

void smooth_l1_case(Case& c) {
  double beta = c.number("beta", 1);
  reduce(c,
         [&](Reduction r) { return smooth_l1_loss(c.get("in.x"), c.get("in.target"), beta, r); });
}

void kl_div_case(Case& c) {
  bool log_target = c.flag("log_target", false);
  reduce(c,
         [&](Reduction r) { return kl_div(c.get("in.input"), c.get("in.target"), log_target, r); });
}

void cosine_similarity_case(Case& c) {
  int axis = int(c.integer("dim", 1));
  c.result("y", cosine_similarity(c.get("in.a"), c.get("in.b"), axis, c.number("eps", 1e-8)));
}

void cdist_case(Case& c) { c.result("y", cdist(c.get("in.a"), c.get("in.b"), c.number("p", 2))); }

}  // namespace

void add_losses(Adapters& all) {
  all["ops.bce_with_logits"] = bce_case;
  all["ops.nll_loss"] = nll_case;
  all["ops.mse_loss"] = loss<mse_loss>;
  all["ops.l1_loss"] = loss<l1_loss>;
  all["ops.huber_loss"] = huber_case;
  all["ops.smooth_l1_loss"] = smooth_l1_case;
  all["ops.kl_div"] = kl_div_case;
  all["ops.cosine_similarity"] = cosine_similarity_case;
  all["ops.cdist"] = cdist_case;
}

}  // namespace pupil::verify
