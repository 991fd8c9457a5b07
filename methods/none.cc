// Training without a teacher: the cross-entropy alone.
#include "method.h"

namespace pupil::methods {

Method none_method() {
  Method method;
  method.name = "none";
  method.summary = "plain training on labels, no teacher";
  method.source = "cross-entropy";
  method.needs_teacher = false;
  method.explanation.symbols = {{"z", "(n, K)", "logits of the student"},
                                {"y", "(n)", "labels, or target probabilities (n, K)"},
                                {"e", "", "train.label_smoothing, spread over all K classes"}};
  method.explanation.equations = {
      {"1", "CE = -1/n sum_i sum_k t_ik log softmax(z_i)_k, t = (1 - e) onehot(y) + e / K"}};
  method.explanation.cases = {"kd.cross_entropy", "kd.soft_target_ce", "ops.cross_entropy"};
  method.make = [](const Options&, const nn::Scope&, const Setup&) { return Instance{}; };
  return method;
}

}  // namespace pupil::methods
