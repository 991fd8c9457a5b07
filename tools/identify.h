// pupil identify: which loss of Pupil is it that a person exported from other code?
#pragma once
#include <map>
#include <string>
#include <vector>

namespace CLI {
class App;
}

namespace pupil {

// One loss with one assignment of the file's tensors and one set of attributes.
struct Guess {
  enum Verdict { different, gradients_equal, equal } verdict = different;
  std::string function;                           // "kd.hinton"
  std::map<std::string, std::string> inputs;      // "in.logits_s" -> name in the file
  std::map<std::string, std::string> attributes;  // those that are not at their default, as JSON
  std::vector<std::string> unused;                // inputs of the file that it does not read
  double factor = 1;  // the file's loss and gradients are `factor` times ours
  // different: the first tensor that differs (the loss, then the gradients) and by how much,
  // relative to its largest value.
  std::string tensor;
  double error = 0;
  double distance = 0;  // 0: the same; orders the guesses
};

struct Identified {
  std::string loss;            // its name in the file
  bool has_gradients = false;  // without them a factor rests on one number
  std::vector<Guess> equal;    // best first; the simplest of each function first
  std::vector<Guess> nearest;  // of other functions, at most five
  int64_t tries = 0;
  std::vector<std::string> stopped;  // functions with more variants than were tried
};

// A safetensors file with inputs of any names, `out.loss`, and `grad.NAME` of those inputs whose
// gradients are known; metadata `attrs` (JSON) fixes attributes. InputError for a file without a
// loss or inputs, or with values that are not finite.
Identified identify(const std::string& path);

void add_identify_command(CLI::App&);

}  // namespace pupil
