// The loss of a run: ce_weight * CE(student, labels) + sum over methods of weight * loss.
#pragma once
#include <optional>

#include "method.h"

namespace pupil::methods {

// One method as a configuration names it.
struct Choice {
  std::string method;
  std::optional<double> weight;  // the method's default when empty
  std::vector<std::pair<std::string, Value>> options;
};

// One summand of the total: total = sum of weight * value. `value` is a scalar in f32 or f64.
struct Part {
  std::string name;  // "ce", "kd", "aft"
  double weight = 1;
  Tensor value;
};

struct Loss {
  Tensor total;
  std::vector<Part> parts;  // "ce" first, unless its weight is 0
};

struct Term {
  std::string name;
  double weight = 1;
  Instance instance;
};

class Objective {
 public:
  // ce_weight: the default of the first method when empty. smoothing: label smoothing of the
  // cross-entropy, in [0, 1). A method's parameters are declared under scope / "loss" / name, so a
  // pretrained student's weights lack them: pass "loss.*" to Store::source as fresh.
  Objective(const std::vector<Choice>&, const nn::Scope&, const Setup&,
            std::optional<double> ce_weight = {}, double smoothing = 0);

  // Teachers must not be empty when needs_teacher(). Throws Error naming the method for wrong
  // shapes and for NaN or infinite teacher outputs.
  Loss operator()(const Step&) const;

  const std::vector<Term>& terms() const { return terms_; }
  double ce_weight() const { return ce_weight_; }
  bool needs_teacher() const { return needs_teacher_; }
  std::vector<std::string> student_taps() const;  // of all methods, each once
  std::vector<std::string> teacher_taps() const;
  std::vector<nn::Group> groups() const;  // optimizer groups that the methods ask for

 private:
  std::vector<Term> terms_;
  double ce_weight_ = 1, smoothing_ = 0;
  bool needs_teacher_ = false;
};

}  // namespace pupil::methods
