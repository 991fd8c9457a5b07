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
  std::vector<int64_t> student_widths;    // of a student of several networks side by side
  std::vector<int64_t> teacher_widths;    // of `features`
  int64_t batch = 0;                      // samples of a step; 0: unknown
  double lr = 1e-3;                       // learning rate of the student
  std::vector<std::string> student_taps;  // what the student announces
};

// The training samples in their order, seen without augmentation by the networks as they are before
// the first step.
struct Survey {
  Tensor labels;                                  // i64 (N)
  std::function<Tensor()> student;                // features, (N, width) in f32
  std::function<Tensor(size_t teacher)> teacher;  // the same of one teacher
  // The same on the test samples; may throw InputError.
  std::function<Tensor(size_t teacher)> teacher_on_test;
  // To be called now and then with what is being done; throws when the person wants to stop.
  std::function<void(const std::string&)> progress = [](const std::string&) {};
};

// A method in one run: which taps it wants, its loss, and how its own parameters are trained.
struct Instance {
  std::vector<std::string> student_taps, teacher_taps;
  std::function<Tensor(const Step&)> loss;  // a scalar, not yet weighted
  std::vector<nn::Group> groups;  // parameters in its scope; others get the student's settings
  // Fills the method's buffers before the first step; not called when a run is resumed, since they
  // are in the checkpoint. May be empty.
  std::function<void(const Survey&)> prepare;
  // Numbers for the record of an epoch, as {"weight_mean", 0.5}. May be empty.
  std::function<std::vector<std::pair<std::string, double>>()> statistics;
  std::vector<std::string> warnings;  // about the options, for the person who started the run
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

// For `make`: an option that must be finite and at least 0, or above 0. InputError otherwise.
double at_least_zero(const Options&, std::string_view name);
double above_zero(const Options&, std::string_view name);
// For `make`: the width of all teachers' features side by side. InputError for a width below 1.
int64_t total_width(const Setup&);
// For `make`: the trainable parameters declared in this scope, with this learning rate and no
// weight decay.
nn::Group own_group(const nn::Scope&, double lr);
// For `make` of a comparison of samples with each other: batches that are too small for it.
std::vector<std::string> idle_warnings(const Setup&);
// For `loss`: the features of all teachers side by side, unscaled, (n, total width) in f32 or f64.
// InputError naming the method when a teacher gives none.
Tensor teacher_features(const char* method, const Step&);

// Throws Error "LOSS: WHAT SHAPE holds ..." when `values` has a NaN or an infinity.
void require_finite(const char* loss, const char* what, const Tensor& values);

void add_method(Method);                             // an existing name throws Error
const Method& find_method(const std::string& name);  // InputError with the nearest name
std::vector<const Method*> list_methods();
// TransMiter and what belongs to it: no losses of a training run, so `make` is empty and
// find_method does not know them; for `pupil explain`. Their options are keys of `pupil
// transmiter`.
std::vector<const Method*> list_pipelines();

}  // namespace pupil::methods
