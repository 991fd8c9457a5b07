// Training a student. Another program can use the Trainer step by step, or run() for what
// `pupil train` does.
#pragma once
#include <set>

#include "eval.h"

namespace pupil {

// Where a run stands between two steps; together with the tensors of a checkpoint it is everything.
struct Position {
  int64_t step = 0;              // updates so far
  int64_t epoch = 0, batch = 0;  // of the next batch, from 0
  // Sums over the samples of this epoch so far.
  int64_t samples = 0, correct = 0;
  std::vector<std::pair<std::string, double>> losses;  // "total", "ce", "kd": sum of part * samples
  double best_top1 = -1;                               // on the validation data
  int64_t best_epoch = 0;                              // from 1
  bool finished = false;                               // tested, last.safetensors is written
  int64_t metrics_bytes = 0;                           // length of metrics.jsonl
};

// How `steps` steps become epochs over `samples` in batches of `batch`, the last of which may be
// smaller: the rule of Qiu et al. 2024's code.
struct EpochPlan {
  EpochPlan(int64_t steps, int64_t samples, int64_t batch);
  int64_t batches, epochs, last;  // of an epoch; of the training; samples of the last batch
  bool few() const { return batches <= 100; }  // freeze_batches = "auto" freezes them
};

class Trainer {
 public:
  // Opens the data, builds the networks and the loss. Writes nothing. Throws InputError.
  explicit Trainer(const Config&);
  ~Trainer();

  // One update with the next batch, or the next train.accumulate of them. Throws Error when the
  // loss or the gradient is not finite; the parameters are then those of the last good step. With
  // `trace`, the file gets the step's named tensors in forward order: batch.*, teacher.NAME.*,
  // student.*, loss.*, grad.* (before clipping), param.* (after the update); of batch k of several
  // with "k." in front. What is computed stays the same.
  void step(const std::string& trace = "");
  // Called with what methods do before the first step; may throw to stop them.
  void on_preparation(std::function<void(const std::string&)> progress);
  bool epoch_done() const;  // all batches of this epoch were used: next_epoch() or training is over
  void next_epoch();

  const Config& config() const;
  Position& position();
  int64_t total_steps() const;
  int64_t epoch_steps() const;   // of an epoch, the last of which may be smaller
  double learning_rate() const;  // of the next step
  double wait_seconds() const;   // that this epoch waited for data
  const models::Model& model() const;
  nn::Store& store();          // the student's parameters; those of methods begin with "loss."
  int64_t parameters() const;  // of the student
  const data::Dataset& train_data() const;
  const data::Dataset* validation_data() const;  // null: none
  const data::Dataset* test_data() const;
  // What methods say about themselves: {"aft", {{"weight_mean", 0.5}}}, and warnings about options.
  std::vector<std::pair<std::string, std::vector<std::pair<std::string, double>>>> statistics()
      const;
  std::vector<std::string> warnings() const;
  const std::vector<std::string>& without_gradient() const;  // trainable, but step 1 gave them none
  std::string sources() const;                               // JSON: hashes of data and weights

  // Everything: parameters, optimizer state, position. Throws Error naming a parameter that is not
  // finite, before anything is written.
  void save(const std::string& path);
  void load(const std::string& path);
  // The network alone, under its public names; with train.ema_decay the average of its weights.
  void save_student(const std::string& path);
  // While f runs the student's weights are their averages, if there are any.
  void with_averages(const std::function<void()>& f);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

struct RunOptions {
  std::string folder;
  bool resume = false;
  int threads = -1;              // -1: as the run that is resumed, else all
  std::set<int64_t> trace = {};  // steps from 1, each into folder/trace-STEP.safetensors
  // Asked after every step: true saves and ends the run, which can be resumed.
  std::function<bool()> time_is_over = {};
};

// Sets up the thread pool; threads = -1 and exact mode become what environment.json of a resumed
// folder says.
void use_threads(RunOptions&);

// A whole run in its folder: config.toml, environment.json, metrics.jsonl (deterministic),
// timing.jsonl, checkpoint.safetensors (for --resume), best.safetensors and last.safetensors.
// Prints its progress on stdout. SIGINT and SIGTERM save a checkpoint and throw Interrupted. False
// when options.time_is_over ended it: the folder then holds best.safetensors or, where no epoch
// was finished, last.safetensors all the same.
bool run(const Config&, RunOptions);

void add_train_command(CLI::App&);

}  // namespace pupil
