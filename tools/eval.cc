#include "eval.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>

#include "../data/file.h"
#include "../tensor/memory.h"
#include "hf_config.h"
#include "program.h"
#include "run_folder.h"
#include "text.h"
#include "zero_shot.h"

namespace pupil {
namespace {

// Classes that the row prefers to its label; of equal logits the first class wins.
int64_t rank_of_label(const float* row, int64_t classes, int64_t label) {
  int64_t rank = 0;
  for (int64_t c = 0; c < classes; c++)
    rank += row[c] > row[label] || (row[c] == row[label] && c < label) || std::isnan(row[c]);
  return rank;
}

Tensor host_rows(const Tensor& logits) { return logits.to(Device{}).to(DType::f32).contiguous(); }

struct EvalArguments {
  std::string what, data, confusion;
  int64_t batch = 256;
  int threads = 0;
  bool json = false, strict = false;
  std::string device = "cpu";
  ZeroShotArguments zero_shot;
};

std::string class_name(const data::Dataset& set, int64_t c) {
  return set.class_names.empty() ? std::to_string(c) : set.class_names[size_t(c)];
}

void eval(const EvalArguments& a) {
  use_threads(a.threads);
  bool is_run = std::filesystem::is_directory(a.what) && !is_hf_folder(a.what);
  NetworkConfig config = parse_network(is_run ? best_checkpoint(a.what) : a.what);
  data::Dataset set = data::open_dataset(a.data, a.strict);
  Network network = load_network(config, read_zero_shot(a.zero_shot, set.class_names));
  Scores scores = evaluate(network.model, set, a.batch, 1);

  std::vector<std::pair<int64_t, int64_t>> per_class;  // right, all
  for (int64_t c = 0; c < scores.classes; c++) {
    int64_t all = 0;
    for (int64_t answer = 0; answer < scores.classes; answer++) all += scores.count(c, answer);
    per_class.emplace_back(scores.count(c, c), all);
  }
  if (!a.confusion.empty()) {
    std::string csv = "true\\answer";
    for (int64_t c = 0; c < scores.classes; c++) csv += "," + csv_field(class_name(set, c));
    for (int64_t c = 0; c < scores.classes; c++) {
      csv += "\n" + csv_field(class_name(set, c));
      for (int64_t answer = 0; answer < scores.classes; answer++)
        csv += "," + std::to_string(scores.count(c, answer));
    }
    data::write_file(a.confusion, csv + "\n");
  }
  if (a.json) {
    nlohmann::ordered_json j;
    j["model"] = network.model.name;
    j["weights"] = config.weights;
    j["data"] = set.spec;
    j["samples"] = scores.samples;
    j["top1"] = scores.top1;
    j["top5"] = scores.top5;
    j["loss"] = scores.loss;
    for (int64_t c = 0; c < scores.classes; c++)
      j["classes"].push_back({{"name", class_name(set, c)},
                              {"samples", per_class[size_t(c)].second},
                              {"right", per_class[size_t(c)].first}});
    std::cout << j.dump(2) << "\n";
    return;
  }
  std::cout << network.model.name << " " << config.weights << " on " << set.spec << ", "
            << counted(scores.samples, "sample") << "\n"
            << concat("top-1 ", percent(scores.top1), "   top-5 ", percent(scores.top5),
                      "   cross-entropy ", scores.loss, "\n");
  for (int64_t c = 0; c < scores.classes; c++) {
    auto [right, all] = per_class[size_t(c)];
    std::cout << std::setw(8) << (all ? percent(double(right) / double(all)) : "-") << "  of "
              << all << "  " << class_name(set, c) << "\n";
  }
}

}  // namespace

int64_t count_correct(const Tensor& logits, const Tensor& labels) {
  Tensor rows = host_rows(logits);
  int64_t correct = 0;
  for (int64_t i = 0; i < rows.dim(0); i++)
    correct += rank_of_label(rows.data<float>() + i * rows.dim(1), rows.dim(1),
                             labels.data<int64_t>()[i]) == 0;
  return correct;
}

Scores evaluate(const models::Model& model, const data::Dataset& set, int64_t batch_size,
                int workers, const std::function<bool()>& keep_on) {
  if (!model.classes)
    fail_input("data: ", set.spec, ": ", model.name, " has no classifier for its classes",
               model.clip ? "; give --template, and --classes where the data has no names" : "");
  if (set.classes != model.classes)
    fail_input("data: ", set.spec, " has ", set.classes, " classes and the model ", model.name,
               " answers ", model.classes, "; give a model that was trained for this data");
  require_input(model, set);
  Scores scores;
  scores.classes = model.classes;
  scores.counts.assign(size_t(scores.classes * scores.classes), 0);
  data::LoaderOptions options;
  options.batch = std::min(batch_size, std::max<int64_t>(set.size(), 1));
  options.workers = workers;
  data::Loader loader(set, {model.input}, options);
  loader.start(0);
  double loss = 0;
  int64_t in_top1 = 0, in_top5 = 0;
  NoGrad no_grad;
  nn::Prepared prepared;
  for (data::Batch batch; loader.next(batch);) {
    if (keep_on && !keep_on()) throw Interrupted("stopped while evaluating");
    StepScope step;
    Tensor logits = host_rows(model.forward(batch.x[0], {.prepared = &prepared}).logits);
    int64_t n = logits.dim(0);
    loss += double(n) * cross_entropy(logits, batch.labels).item();
    for (int64_t i = 0; i < n; i++) {
      const float* row = logits.data<float>() + i * scores.classes;
      int64_t label = batch.labels.data<int64_t>()[i];
      int64_t rank = rank_of_label(row, scores.classes, label);
      in_top1 += rank == 0;
      in_top5 += rank < 5;
      int64_t answer = std::max_element(row, row + scores.classes) - row;
      scores.counts[size_t(label * scores.classes + answer)]++;
    }
    scores.samples += n;
  }
  double n = double(std::max<int64_t>(scores.samples, 1));
  scores.loss = loss / n;
  scores.top1 = double(in_top1) / n;
  scores.top5 = double(in_top5) / n;
  return scores;
}

void add_eval_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand("eval", "accuracy of a network on a data set");
  command->footer(
      "Examples:\n  pupil eval runs/kd --data fashion_mnist:DIR:test --confusion kd.csv\n"
      "  pupil eval resnet20.th --data cifar10:DIR:test --json\n"
      "  pupil eval ViT-B-32-quickgelu:ViT-B-32.pt --data folder:photos --template templates.txt");
  auto a = std::make_shared<EvalArguments>();
  command
      ->add_option("network", a->what,
                   "a run folder (its best weights), a checkpoint, or MODEL:CHECKPOINT where its "
                   "tensors do not tell the network")
      ->required();
  command->add_option("--data", a->data, "KIND:PATH[:SPLIT[N]]")->required();
  command->add_option("--batch", a->batch, "samples at a time")->check(CLI::Range(1, 1000000));
  command->add_option("--confusion", a->confusion, "write the confusion matrix to this CSV file");
  add_zero_shot_options(*command, a->zero_shot);
  command->add_flag("--strict", a->strict, "an unreadable image is an error");
  command->add_flag("--json", a->json, "for machines");
  command->add_option("--device", a->device, "cpu")->check(CLI::IsMember({"cpu"}));
  add_threads_option(*command, a->threads);
  command->callback([a] { eval(*a); });
}

}  // namespace pupil
