#include "samples.h"

#ifdef PUPIL_TESTS
namespace pupil::test {

std::vector<Sample>& samples() {
  static std::vector<Sample> all;  // registrars run before main: made at the first use
  return all;
}

void Samples::add(std::string name, std::vector<Shape> inputs, Fn f, SampleOptions options) {
  samples().push_back({op, std::move(name), std::move(inputs), std::move(f), options, false});
}

void Samples::add_error(std::string name, std::vector<Shape> inputs, Fn f) {
  samples().push_back({op, std::move(name), std::move(inputs), std::move(f), {}, true});
}

Registrar::Registrar(const char* op, void (*declare)(Samples&)) {
  Samples s{op};
  declare(s);
}

}  // namespace pupil::test
#endif
