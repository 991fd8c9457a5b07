// What an op or method file declares about itself for the tests: PUPIL_SAMPLES(gelu) { s.add(...);
// }. tests/op_suite_test.cc runs every check on every sample. Compiled away outside the test build.
#pragma once
#include "autograd.h"

namespace pupil::test {

struct SampleOptions {
  double low = -1, high = 1;        // range of the random inputs
  bool bf16 = true;                 // the op accepts bf16 inputs
  std::vector<int> constants = {};  // inputs that never ask for a gradient, e.g. a teacher's
};

struct Sample {
  std::string op, name;
  std::vector<Shape> inputs;
  Fn f;
  SampleOptions options;
  bool must_throw = false;
};

std::vector<Sample>& samples();  // of every op and method that is linked in

struct Samples {
  const char* op;
  // f gets one random tensor per shape; all but the constants ask for a gradient.
  void add(std::string name, std::vector<Shape> inputs, Fn f, SampleOptions options = {});
  // f must throw an Error whose text contains the op's name.
  void add_error(std::string name, std::vector<Shape> inputs, Fn f);
};

struct Registrar {
  Registrar(const char* op, void (*declare)(Samples&));
};

}  // namespace pupil::test

#ifdef PUPIL_TESTS
#define PUPIL_SAMPLES(op)                                                              \
  static void pupil_samples_##op(::pupil::test::Samples&);                             \
  static const ::pupil::test::Registrar pupil_registrar_##op(#op, pupil_samples_##op); \
  static void pupil_samples_##op([[maybe_unused]] ::pupil::test::Samples& s)
#else
#define PUPIL_SAMPLES(op) \
  template <class Unused> \
  [[maybe_unused]] static void pupil_samples_##op([[maybe_unused]] Unused& s)
#endif
