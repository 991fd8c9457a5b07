// The configuration of a training run: what `pupil train` reads, `pupil init` prints and a run
// folder keeps. Every key is declared once, in config.cc, with its range and its help.
#pragma once
#include "../data/data.h"
#include "../methods/objective.h"

namespace pupil {

struct DataConfig {
  std::string train, validation, test;  // KIND:PATH[:SPLIT[N]]; only train is needed
  double validation_share = 0;          // of train, when `validation` is not given
  int64_t seed = 0;                     // of subsets and of the validation share
  bool strict = false;
  int64_t workers = 1;
};

// A network: made new, or read from a file.
struct NetworkConfig {
  std::string model, weights;
  int64_t image = 0;              // side in pixels; 0: as the weights or the model say
  std::vector<double> mean, std;  // of pixels in [0, 1]; empty: as the weights or the model say
};

struct StudentConfig : NetworkConfig {
  std::string head = "keep";
  std::vector<std::string> freeze;
  double dropout = 0, drop_path = 0;
};

struct TeacherConfig : NetworkConfig {
  std::string name;
  std::vector<std::string> features;       // files of `pupil features`, instead of a live network
  std::vector<std::string> test_features;  // of the test samples, where a method looks at them
};

struct TrainConfig {
  int64_t epochs = 0, steps = 0;  // one of them
  int64_t batch = 128, accumulate = 1;
  std::string optimizer = "sgd";
  double lr = 0.05, weight_decay = 5e-4, momentum = 0.9;
  bool nesterov = false;
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8, alpha = 0.99;
  bool centered = false, trust_clip = false, always_adapt = false;
  std::string schedule = "cosine";
  double warmup = 0, warmup_start = 0, floor = 0;
  std::vector<int64_t> milestones;
  int64_t step_size = 1;
  double gamma = 0.1;
  double cycle = 0, cycle_mul = 1, cycle_decay = 1;
  double pct_start = 0.3, div_factor = 25, final_div_factor = 1e4, base_momentum = 0.85;
  std::string schedule_per = "step", freeze_batches = "never", precision = "f32";
  int64_t prior_freq = 1;
  double clip_norm = 0, label_smoothing = 0, ema_decay = 0;
  bool ema_warmup = false;
  std::optional<double> ce_weight;
  int64_t seed = 0, patience = 0, checkpoint_every = 0;
};

struct Config {
  DataConfig data;
  StudentConfig student;
  std::vector<TeacherConfig> teachers;
  std::vector<methods::Choice> methods;  // after reading: every option and weight filled in
  TrainConfig train;
  data::Augmentation augment;
};

// Reads TOML; each of `settings` is "section.key=value" and replaces what the text says
// ("method.kd.T=2", "teacher.0.weights=FILE"). Throws InputError that names the place, and for an
// unknown key the nearest one. `name` is the file's name in messages.
Config parse_config(const std::string& text, const std::string& name,
                    const std::vector<std::string>& settings = {});
Config read_config(const std::string& path, const std::vector<std::string>& settings = {});

// One file with several arms: each [[arm]] has a name and any of the sections above, which are
// merged over the rest of the file. [study] says seeds = [...], each arm is trained once with each,
// and lr = [...], the learning rates that an arm chooses from on the validation samples, in runs of
// lr_epochs epochs (0: as long as the arm's own). With retrain = true the share of the training
// samples that the choice was validated on is trained on too.
struct Study {
  struct Arm {
    std::string name;
    Config config;
  };
  std::vector<Arm> arms;  // empty: the file is a plain configuration
  std::vector<int64_t> seeds;
  std::vector<double> lr;
  int64_t lr_epochs = 0;
  bool retrain = false;
};
Study read_study(const std::string& path, const std::vector<std::string>& settings = {});

// A study, or a configuration of `pupil transmiter`, with a section [reproduce]: what was
// published, and what counts as the same.
struct Reproduction {
  std::string title, source, protocol, differs;
  // Given relative to the file. recipe: a study whose sections this file's replace; teacher: a
  // configuration that is trained first, its network becomes teacher 0.
  std::string recipe, teacher;
  struct Need {                       // data or weights: what to put where
    std::string setting, path, what;  // setting: the key that names it, if one does
    std::string make;                 // a command that makes it, if there is one
  };
  std::vector<Need> needs;
  struct Result {
    // The arm's test accuracy in percent, or how far it is above that of `minus`, or its error as a
    // share of that of `error_over`. Of TransMiter an arm is a row of its table.
    std::string arm, minus, error_over;
    std::string weights = "last";    // or best
    std::string score = "accuracy";  // of base-to-novel: base, novel, harmonic_mean
    std::string published, source;   // in words: "94.30 ± 0.16"; source: the table
    std::vector<double> band;        // [lowest, highest] accepted mean over the seeds
    std::vector<double> seed_band;   // of every single seed; empty: any
    double sigma = 100;              // largest accepted deviation over the seeds
  };
  std::vector<Result> results;
};
// The section [reproduce] alone: nothing that it names is opened.
Reproduction read_reproduction(const std::string& path);
// The study that it describes, from the file itself and its recipe.
Study read_reproduced_study(const std::string& path, const std::vector<std::string>& settings = {});

// TOML that parse_config reads back to the same configuration. commented: with the help of every
// key.
std::string to_toml(const Config&, bool commented);
std::string to_toml(const Study&);  // read_study reads it back

}  // namespace pupil
