// What a transfer method is to a training run. One file per method registers itself here; a program
// that links Pupil can register its own.
#pragma once
#include "../models/models.h"
#include "../nn/optim.h"

namespace pupil::methods {

struct Batch {
  Tensor labels;   // i64 (n)
  Tensor targets;  // (n, classes) probabilities when mixup or cutmix is on, else empty
  Tensor index;    // i64 (n): row of each sample in the whole data set, for stored features
};

// What one teacher said about the batch: live or read from a feature file. No gradient flows into
// it.
struct Teacher {
  std::string name;
  Tensor logits, features;  // either may be empty when stored features hold only the other
  nn::Taps taps;
};

struct Step {
  const Batch& batch;
  const models::Output& student;
  const nn::Taps& student_taps;
  std::span<const Teacher> teachers;
  nn::Call call;
};

// An option of a method under the paper's symbol. The type follows from the default value.
using Value = std::variant<bool, int64_t, double, std::string>;
struct Option {
  std::string name;
  Value value;              // the default
  std::string help;         // "temperature T of both soft-maxes (Hinton et al. 2015, eq. 1)"
  std::string source = {};  // of the default: "the official code's README"
};
class Options {  // declared options with the run's values; reading an undeclared name throws Error
 public:
  Options() = default;
  explicit Options(const std::vector<Option>& declared);
  void set(const std::string& name,
           const Value&);  // InputError: unknown name (with the nearest), wrong type
  bool flag(std::string_view name) const;
  int64_t integer(std::string_view name) const;
  double number(std::string_view name) const;
  const std::string& text(std::string_view name) const;
  const std::map<std::string, Value, std::less<>>& all() const { return values_; }

 private:
  std::map<std::string, Value, std::less<>> values_;
};

// What a method may look at when a run is set up.
struct Setup {
  int64_t classes = 0, student_width = 0;
  std::vector<int64_t> teacher_widths;    // of `features`
  std::vector<std::string> student_taps;  // what the student announces
};

// A method in one run: which taps it wants, its loss, and how its own parameters are trained.
struct Instance {
  std::vector<std::string> student_taps, teacher_taps;
  std::function<Tensor(const Step&)> loss;  // a scalar, not yet weighted
  std::vector<nn::Group> groups;  // parameters in its scope; others get the student's settings
};

// What `pupil explain` shows. The lines that compute equation "3" of a method carry the marker
// [METHOD 3] in a comment; a test fails when an equation has none or a marker names no equation.
struct Symbol {
  std::string name, shape, meaning;
};
struct Equation {
  std::string id, formula;
};
struct Explanation {
  std::vector<Symbol> symbols;
  std::vector<Equation> equations;
  std::vector<std::string> cases;  // functions of the reference cases that prove it: "kd.hinton"
};

struct Method {
  std::string name, summary, source;  // source: paper and equation or code
  std::vector<Option> options;
  double weight = 1;     // default factor of loss() in the total
  double ce_weight = 1;  // default factor of the cross-entropy beside it
  bool needs_teacher = true;
  std::function<Instance(const Options&, const nn::Scope&, const Setup&)> make;
  Explanation explanation = {};
};

// Throws Error "LOSS: WHAT SHAPE holds ..." when `values` has a NaN or an infinity.
void require_finite(const char* loss, const char* what, const Tensor& values);

void add_method(Method);                             // an existing name throws Error
const Method& find_method(const std::string& name);  // InputError with the nearest name
std::vector<const Method*> list_methods();

}  // namespace pupil::methods
