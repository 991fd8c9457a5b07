// What the adapters of aft.* share: a regulariser with the case's options, as a training run has
// it.
#pragma once
#include "../../methods/aft.h"
#include "../../methods/objective.h"
#include "case.h"

namespace pupil::verify {

methods::AftOptions aft_options(Case&, int64_t width = 0);  // kernel, map, feat_dims

class AftRun {
 public:
  nn::Store store;

  // method: a name of the catalogue, "stl" or "aft_rbf". Reads beta, learn_s and s_lr.
  AftRun(Case&, const std::string& method, methods::AftOptions, int64_t student_width,
         int64_t classes = 0);

  // Copies the start values of what the regulariser trains from "<prefix><name>" ("s",
  // "proj.weight") and asks for their gradients under these names.
  void start(const std::string& prefix);
  // "s" of the parameter's name in the store, "" for another's.
  std::string own_name(const std::string& parameter) const;

  methods::Loss loss(const models::Output& student, const Tensor& psi, const Tensor& labels) const;
  Tensor regulariser(const Tensor& phi, const Tensor& psi) const;  // times beta
  std::vector<nn::Group> groups() const { return groups_; }

 private:
  Case& c_;
  std::string prefix_;  // "loss.aft."
  std::vector<nn::Group> groups_;
  std::optional<methods::Objective> objective_;
  std::function<Tensor(const Tensor& phi, const Tensor& factors)> factors_;  // "ft"
};

void add_aft_baselines(Adapters&);
void add_aft_training(Adapters&);

}  // namespace pupil::verify
