// Accuracy of a network on a data set, and the command `pupil eval`.
#pragma once
#include "network.h"

namespace CLI {
class App;
}

namespace pupil {

struct Scores {
  int64_t samples = 0, classes = 0;
  double loss = 0;              // mean cross-entropy
  double top1 = 0, top5 = 0;    // shares; equal logits count against the network
  std::vector<int64_t> counts;  // confusion matrix, row = true class, column = answer

  int64_t count(int64_t truth, int64_t answer) const {
    return counts[size_t(truth * classes + answer)];
  }
};

// Runs the evaluation transform over all samples. `keep_on` is asked between batches; false stops
// with Interrupted.
Scores evaluate(const models::Model&, const data::Dataset&, int64_t batch, int workers,
                const std::function<bool()>& keep_on = {});

// How many rows of `logits` (n, classes) have their label in first place.
int64_t count_correct(const Tensor& logits, const Tensor& labels);

void add_eval_command(CLI::App&);

}  // namespace pupil
