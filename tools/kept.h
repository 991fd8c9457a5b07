// Which teacher features a finished run of AFT kept: its weights sigmoid(s), per teacher.
#pragma once
#include <string>
#include <vector>

namespace pupil {

struct KeptFeatures {
  std::string teacher;
  std::vector<double> weights;  // sigmoid(s) of its dimensions, in order; all start at 0.5

  double mean() const;
  double deviation() const;
  double share() const;  // of dimensions whose weight has grown
};

// From the run's checkpoint; empty for a run without such weights.
std::vector<KeptFeatures> kept_features(const std::string& run);

// The weights as inline SVG: a histogram from 0 to 1, and below it all dimensions from left to
// right, dark where the weight is large.
std::string kept_picture(const KeptFeatures&);

}  // namespace pupil
