// One file of format pupil-case-1: named inputs, options, expected outputs and gradients. An
// adapter reads what it needs, calls the function under test and hands the results back by name.
#pragma once
#include <nlohmann/json_fwd.hpp>
#include <set>

#include "../../data/weights.h"

namespace pupil::verify {

// What an adapter throws when a case asks for something that Pupil does not have: "causal = true".
struct Unsupported : Error {
  using Error::Error;
};

// What an adapter ends with when the case lacks something that it cannot do without.
struct Missing : Error {
  std::string name;
  bool is_tensor;  // else an attribute
  Missing(const std::string& function, const std::string& name, bool is_tensor)
      : Error(concat("verify: ", function, ": the case has no ",
                     is_tensor ? "tensor " : "attribute ", name)),
        name(name),
        is_tensor(is_tensor) {}
};

class Case {
 public:
  Case(std::shared_ptr<const data::Weights> file, DType dtype, Device device);
  ~Case();

  const std::string& function() const { return function_; }  // "aft.loss"
  const std::string& path() const { return file_->path(); }
  bool expects_error() const { return expects_error_; }
  DType dtype() const { return dtype_; }
  Device device() const { return device_; }

  // Tensors under their full names ("in.x", "param.weight"). Floating ones in the dtype of the run,
  // others as i64. A tensor asks for a gradient where the case knows one ("grad.in.x").
  bool has(const std::string& name) const;
  Tensor get(const std::string& name);
  Tensor get_if(const std::string& name);  // empty when the case lacks it
  // A teacher's tensor: asks for a gradient, and compare() fails if one arrives.
  Tensor constant(const std::string& name);
  std::vector<std::string> names(const std::string& prefix) const;  // prefix removed, file order
  void ignore(const std::string& name);  // a tensor or attribute that is only for information

  // The tensors "param.<prefix>..." as a source of parameters; with attribute `param_init` their
  // values come from its hash. All count as read.
  std::shared_ptr<const data::Weights> parameters(const std::string& prefix = "");
  // A parameter that lives elsewhere (in a Store): its gradient is that of "param.<name>".
  void track(const std::string& name, const Tensor&);
  // The same where differentiate() leaves it in other tensors, from which this makes it.
  void track(const std::string& name, std::function<Tensor()> gradient);

  // Attributes; a null counts as absent. Reading an absent one without a default throws Error.
  bool has_attribute(const std::string& name) const;
  const nlohmann::json& attribute(const std::string& name);
  double number(const std::string& name);
  double number(const std::string& name, double otherwise);
  int64_t integer(const std::string& name);
  int64_t integer(const std::string& name, int64_t otherwise);
  bool flag(const std::string& name, bool otherwise);
  std::string text(const std::string& name, const std::string& otherwise);
  std::vector<int64_t> integers(const std::string& name);  // a number or a list of numbers
  std::vector<double> numbers(const std::string& name);    // the same
  int64_t both(const std::string& name);  // [k, k] or k; Unsupported when the two differ
  template <class T>                      // Unsupported unless it is absent or has this value
  void only(const std::string& name, const T& value);

  void result(const std::string& name, const Tensor&);  // "y" for out.y
  void result(const std::string& name, const std::vector<double>&);

  // Names of inputs, parameters and attributes that nobody read.
  std::vector<std::string> unread() const;
  // Every name of a tensor or an attribute that the adapter read or asked for.
  const std::set<std::string>& asked() const { return asked_; }
  Tensor output(const std::string& name) const;    // what the adapter gave, or empty
  Tensor gradient(const std::string& name) const;  // of "in.x" after differentiate(), or empty
  void differentiate();                            // out.loss, or the outputs that have a cotangent

  // Compares every out.* and grad.*; runs backward() where there are gradients. Returns the worst
  // tensor; ratio <= 1 means that it agrees.
  struct Worst {
    std::string tensor, problem;  // problem: not a matter of numbers ("missing", other shape)
    double error = 0, allowed = 0, ratio = -1;
  };
  Worst compare();

 private:
  struct Attributes;
  Tensor load(const std::string& name);
  void judge(const std::string& name, const Tensor& got, Worst&) const;

  std::shared_ptr<const data::Weights> file_;
  std::unique_ptr<Attributes> attributes_;
  std::map<std::string, data::TensorInfo> tensors_;
  std::string function_;
  bool expects_error_ = false;
  DType dtype_;
  Device device_;
  std::set<std::string> read_;
  mutable std::set<std::string> asked_;
  std::map<std::string, Tensor> leaves_;                 // "in.x" -> the tensor that was handed out
  std::map<std::string, std::function<Tensor()>> made_;  // gradients by name
  std::map<std::string, Tensor> constants_;              // the same for teachers
  std::map<std::string, Tensor> results_;                // "y" -> what the function gave
};

using Adapter = void (*)(Case&);
using Adapters = std::map<std::string, Adapter>;  // function -> adapter
const Adapters& adapters();                       // of every function that Pupil has
void add_ops(Adapters&);
void add_losses(Adapters&);
void add_optim(Adapters&);
void add_lora(Adapters&);
void add_aft(Adapters&);
void add_kd(Adapters&);
void add_linalg(Adapters&);
void add_clip(Adapters&);
void add_vit(Adapters&);
void add_convolutional(Adapters&);
void add_image(Adapters&);
void add_transmiter(Adapters&);

}  // namespace pupil::verify
