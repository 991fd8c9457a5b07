// Training without a teacher: the cross-entropy alone.
#include "method.h"

namespace pupil::methods {

Method none_method() {
  Method method;
  method.name = "none";
  method.summary = "plain training on labels, no teacher";
  method.source = "cross-entropy";
  method.needs_teacher = false;
  method.make = [](const Options&, const nn::Scope&, const Setup&) { return Instance{}; };
  return method;
}

}  // namespace pupil::methods
