// One TransMiter experiment on stored features, or on images: its configuration and its data.
#pragma once
#include "../methods/transmiter.h"
#include "../methods/zero_shot.h"
#include "train.h"

namespace pupil {

// Stored outputs of one model: .npy, or feature files of `pupil features`. Or a CLIP checkpoint,
// whose towers see the names and the images themselves.
struct ModelFiles {
  std::string model, weights;  // then text, train, test and logit_scale come from it
  std::string text;            // (names, d) or (names, templates, d) text features
  std::string train, test;     // (N, d) image features
  std::string head;            // fine-tuned classifier (C, d), or
  std::vector<std::string> train_logits, test_logits;  // (N, C) of one or several fine-tuned models
  bool confidence_weighted = false;                    // how several are combined
  double logit_scale = 100;                            // exp of the model's logit_scale
};

struct TransmiterConfig {
  struct {
    std::string names;              // a class name a line, in the order of the text features
    std::vector<std::string> task;  // in the order of the labels
    std::vector<std::string> templates{"a photo of a {}."};
    std::string auxiliary = "random";  // strategy, or random_vectors
    std::string order;                 // instead: rows of the names, task classes first
    int64_t seed = 1;
    bool clean_names = false;
    std::string vocabulary;  // of CLIP; "": beside the weights
  } classes;
  struct {
    std::string train_images, test_images;  // KIND:PATH[:SPLIT], with their labels
    std::string train_labels, test_labels, train_rows, test_rows;
    std::vector<int64_t> labels;  // of each task class in the label files; empty: 0 ... C - 1
    int64_t shots = 0;            // labelled rows of a class; 0: all
    std::string unlabelled = "train";
    std::string protocol = "base_to_base";
    std::vector<std::string> base;  // empty: the first half of the task classes
  } data;
  ModelFiles weak, strong;
  struct {
    std::string adapter;                            // a file to use instead of extracting one
    int64_t logits = 1024, latent = 0, hidden = 0;  // 0: as many as logits; 4 times latent
    std::string basis = "expm";
    double alpha = 1, temperature = 1, teacher_temperature = 0.5, noise = 0.5;
    double lr = 1e-3, weight_decay = 1e-3, warmup = 0.05;
    int64_t epochs = 10, batch = 128;
    std::vector<double> beta{500};
    bool rotation = false;
  } transmiter;
  struct {
    std::vector<std::string> modes{"orthogonal"};
    double lr = 1e-4, weight_decay = 1e-3;
    int64_t epochs = 50, batch = 128;
    bool from_scratch = false;
  } plus;
  struct {
    std::string mode = "proxy";
    std::vector<double> alpha{1};
    bool dynamic = true;
  } eft;
  struct {
    std::vector<double> alpha{1}, beta{5.5};
  } tip_adapter;
  struct {
    std::vector<double> c{1};
    bool choose_c = false;
  } linear_probe;
  std::vector<int64_t> seeds{1, 2, 3};
};

// A file of `pupil transmiter`, or a reproduction of one. Throws InputError that names the place,
// as read_config does.
TransmiterConfig read_transmiter_config(const std::string& path,
                                        const std::vector<std::string>& settings = {});
// With the seed in place of {seed} in the files of [data], [weak] and [strong].
TransmiterConfig for_seed(TransmiterConfig, int64_t seed);
bool is_transmiter(const std::string& path);  // it has the section [classes]
std::string to_toml(const TransmiterConfig&);

// What the files of one model hold, for the chosen rows and names.
struct ModelData {
  Tensor train, test;              // features (N, d)
  Tensor head;                     // zero-shot (M, d), times logit_scale
  Tensor tuned_train, tuned_test;  // fine-tuned logits (N, C); empty when there are none
  double logit_scale = 100;
  Tensor zero_shot(const Tensor& features) const;  // (N, M)
};

struct TransmiterData {
  std::vector<std::string> names;  // M: task classes, then auxiliary
  int64_t classes = 0;             // C
  Tensor train_labels, test_labels;
  std::vector<int64_t> base, novel;  // novel is empty in base-to-base
  ModelData weak, strong;
  std::map<std::string, std::string> sources;  // SHA-256 of every file by its path
};

// Reads and checks everything. InputError for each way in which the files do not fit together.
TransmiterData open_transmiter_data(const TransmiterConfig&);

// A row of the table: the scores of every seed, or of one where no seed matters. In base-to-base
// `base` is the accuracy over all classes.
struct ScoreLine {
  std::string model;
  std::vector<methods::BaseNovel> scores;
};

// Every seed in its folder options.folder/seedN, or nowhere when options.folder is empty. With
// options.resume finished seeds stay; one that was stopped begins anew. Progress on stdout unless
// `quiet`. Throws Interrupted as run() does.
std::vector<ScoreLine> run_transmiter(const TransmiterConfig&, RunOptions options,
                                      bool quiet = false);

// What the training of one seed will take, extraction and every form of TransMiter+, from a few
// steps of each.
struct TransmiterTrial {
  int64_t parameters = 0, samples = 0, steps = 0;
  double seconds = 0;
};
TransmiterTrial try_transmiter(const TransmiterConfig&);

}  // namespace pupil
