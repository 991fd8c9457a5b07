#include "objective.h"

#include <algorithm>

namespace pupil::methods {
namespace {

void check_weight(const std::string& what, double weight) {
  if (!(weight >= 0) || std::isinf(weight))
    fail_input(what, " must be a finite number >= 0, got ", weight);
}

void add_unique(std::vector<std::string>& to, const std::vector<std::string>& from) {
  for (const std::string& name : from)
    if (std::find(to.begin(), to.end(), name) == to.end()) to.push_back(name);
}

}  // namespace

Objective::Objective(const std::vector<Choice>& choices, const nn::Scope& scope, const Setup& setup,
                     std::optional<double> ce_weight, double smoothing)
    : smoothing_(smoothing) {
  if (!(smoothing >= 0 && smoothing < 1))
    fail_input("label smoothing must lie in [0, 1), got ", smoothing);
  bool first = true;
  for (const Choice& choice : choices) {
    const Method& method = find_method(choice.method);
    for (const Term& term : terms_)
      if (term.name == method.name) fail_input("method '", method.name, "' is listed twice");
    if (first) ce_weight_ = method.ce_weight;
    first = false;
    Options options(method.options);
    Term term{method.name, choice.weight.value_or(method.weight), {}};
    check_weight("method " + method.name + ": weight", term.weight);
    try {
      for (auto& [name, value] : choice.options) options.set(name, value);
      term.instance = method.make(options, scope / "loss" / method.name, setup);
    } catch (const InputError& error) {
      fail_input("method ", method.name, ": ", error.what());
    }
    auto beta = options.all().find("beta");
    if (beta != options.all().end() && beta->second == Value(0.0))
      term.instance.warnings.push_back("beta is 0: the regulariser and its weights do nothing");
    if (term.weight == 0 && term.instance.loss)
      term.instance.warnings.push_back("weight is 0: this loss does nothing");
    needs_teacher_ |= method.needs_teacher;
    terms_.push_back(std::move(term));
  }
  if (ce_weight) ce_weight_ = *ce_weight;
  check_weight("ce_weight", ce_weight_);
  auto pulls = [](const Term& term) { return term.weight > 0 && term.instance.loss; };
  if (ce_weight_ == 0 && std::none_of(terms_.begin(), terms_.end(), pulls))
    fail_input(
        "every weight of the loss is 0: nothing to train; give train.ce_weight or a [[method]] ",
        "a weight above 0");
}

Loss Objective::operator()(const Step& step) const {
  PUPIL_CHECK(!needs_teacher_ || !step.teachers.empty(), "objective: this run needs a teacher");
  Loss loss;
  auto add_part = [&](const std::string& name, double weight, const Tensor& value) {
    PUPIL_CHECK(value.numel() == 1, "objective: the loss of '", name, "' has shape ",
                value.shape());
    Part part{name, weight, to_dtype(value, acc_dtype(value.dtype()))};
    Tensor weighted = weight == 1 ? part.value : scale(part.value, weight);
    loss.total = loss.total ? add(loss.total, weighted) : weighted;
    loss.parts.push_back(std::move(part));
  };
  if (ce_weight_ > 0) {
    const Tensor& target = step.batch.targets ? step.batch.targets : step.batch.labels;
    // [none 1] the only part of plain training
    add_part("ce", ce_weight_,
             cross_entropy(step.student.logits, target, {.smoothing = smoothing_}));
  }
  for (const Term& term : terms_)
    if (term.instance.loss) add_part(term.name, term.weight, term.instance.loss(step));
  PUPIL_CHECK(bool(loss.total), "objective: ce_weight is 0 and no method adds a loss");
  return loss;
}

std::vector<std::string> Objective::student_taps() const {
  std::vector<std::string> taps;
  for (const Term& term : terms_) add_unique(taps, term.instance.student_taps);
  return taps;
}

std::vector<std::string> Objective::teacher_taps() const {
  std::vector<std::string> taps;
  for (const Term& term : terms_) add_unique(taps, term.instance.teacher_taps);
  return taps;
}

std::vector<nn::Group> Objective::groups() const {
  std::vector<nn::Group> groups;
  for (const Term& term : terms_)
    groups.insert(groups.end(), term.instance.groups.begin(), term.instance.groups.end());
  return groups;
}

}  // namespace pupil::methods
