#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>

#include "../data/clean_name.h"
#include "../data/data.h"
#include "../data/file.h"
#include "../data/sha256.h"
#include "../methods/auxiliary_classes.h"
#include "../methods/eft.h"
#include "../methods/zero_shot.h"
#include "../tensor/memory.h"
#include "network.h"
#include "transmiter_job.h"

namespace pupil {

Tensor ModelData::zero_shot(const Tensor& features) const {
  NoGrad no_grad;
  return methods::zero_shot_logits(features, head);
}

namespace {

using Rows = std::vector<int64_t>;

class InputFiles {
 public:
  explicit InputFiles(std::map<std::string, std::string>& sources) : sources_(sources) {}

  // Features f32 (N, d): .npy, or all rows of a file of `pupil features`.
  Tensor features(const std::string& path) {
    note(path);
    Tensor x;
    if (path.ends_with(".safetensors")) {
      data::FeatureFile file(path);
      data_hash_.try_emplace(file.header().data_hash, path);
      Tensor all = zeros({file.header().samples}, DType::i64);
      std::iota(all.data<int64_t>(), all.data<int64_t>() + all.numel(), 0);
      x = file.gather(all);
    } else {
      x = numbers(path);
    }
    if (x.rank() != 2 || x.numel() == 0)
      fail_input(path, " holds ", x.shape(), "; features (samples, width) are expected");
    return x;
  }

  Tensor numbers(const std::string& path) {  // f32, finite
    note(path);
    Tensor x = data::read_npy(path).to(DType::f32);
    int64_t width = x.rank() ? x.dim(-1) : 1;
    for (int64_t i = 0; i < x.numel(); i++)
      if (!std::isfinite(x.data<float>()[i]))
        fail_input(path, ": row ", i / width,
                   " holds a value that is not a number (NaN or infinite)");
    return x;
  }

  Rows integers(const std::string& path) {
    note(path);
    Tensor x = data::read_npy(path);
    if (x.rank() != 1 || is_floating(x.dtype()))
      fail_input(path, " holds ", name_of(x.dtype()), x.shape(),
                 "; whole numbers (N) are expected");
    x = x.to(DType::i64);
    return {x.data<int64_t>(), x.data<int64_t>() + x.numel()};
  }

  std::vector<std::string> lines(const std::string& path) {
    data::MappedFile file(path);
    note(path);
    std::istringstream text(std::string(file.text()));
    std::vector<std::string> names;
    for (std::string line; std::getline(text, line);) {
      if (!line.empty() && line.back() == '\r') line.pop_back();
      if (line.empty()) fail_input(path, ":", names.size() + 1, ": an empty class name");
      names.push_back(line);
    }
    return names;
  }

  // InputFiles of `pupil features` say which data they were made of.
  void require_same_data() const {
    if (data_hash_.size() > 1)
      fail_input("features of different data: ", data_hash_.begin()->second, " and ",
                 data_hash_.rbegin()->second, " were made of data sets with the hashes ",
                 data_hash_.begin()->first.substr(0, 12), "... and ",
                 data_hash_.rbegin()->first.substr(0, 12), "...");
  }
  void forget_data() { data_hash_.clear(); }

 private:
  void note(const std::string& path) {
    data::MappedFile file(path);
    data::Sha256 hash;
    hash.add(file.data(), file.size());
    sources_[path] = hash.hex();
  }

  std::map<std::string, std::string>& sources_;
  std::map<std::string, std::string> data_hash_;  // hash -> first file that has it
};

Tensor row_tensor(const Rows& rows) {
  return from(std::span<const int64_t>(rows), {int64_t(rows.size())});
}

// Image features (N, width) of a data set, f32.
Tensor image_features(const models::Model& model, const data::Dataset& set) {
  require_input(model, set);
  data::LoaderOptions options;
  options.batch = std::min<int64_t>(64, set.size());
  data::Loader loader(set, {model.input}, options);
  Tensor all = empty({set.size(), model.width});
  int64_t done = 0;
  for (data::Batch batch; loader.next(batch);) {
    StepScope step;
    Tensor rows = model.forward(batch.x[0], {}).features.to(DType::f32).contiguous();
    std::copy_n(rows.data<float>(), rows.numel(), all.data<float>() + done * model.width);
    done += rows.dim(0);
  }
  return all;
}

// What the towers of a checkpoint say of the names, (names, templates, d), and of the images.
struct Seen {
  Tensor text, train, test;
  double logit_scale;
};
Seen see(const ModelFiles& from, const ZeroShot& texts, const data::Dataset& train,
         const data::Dataset& test, std::map<std::string, std::string>& sources) {
  NetworkConfig config;
  config.model = from.model;
  config.weights = from.weights;
  Network network = load_network(config, {{}, {}, "", true});
  sources[from.weights] = network.weights->hash();
  return {text_features(*network.clip, texts, from.weights), image_features(network.model, train),
          image_features(network.model, test), std::exp(network.clip->logit_scale.item())};
}

// One part of the data: training or test.
struct DataPart {
  std::string name;  // "train" or "test"
  Rows labels;       // of the whole files
  Rows rows;         // that are used
};

DataPart open_part(InputFiles& files, const std::string& name, const std::string& labels,
                   const std::string& rows, const data::Dataset& images) {
  DataPart part{name, images.size() ? images.labels : files.integers(labels), {}};
  int64_t n = int64_t(part.labels.size());
  if (rows.empty()) {
    part.rows.resize(size_t(n));
    std::iota(part.rows.begin(), part.rows.end(), 0);
  } else {
    part.rows = files.integers(rows);
    for (int64_t row : part.rows)
      if (row < 0 || row >= n)
        fail_input(rows, ": row ", row, " of ", n, " rows of ",
                   images.size() ? images.spec : labels);
  }
  if (part.rows.empty()) fail_input("data.", name, "_rows: no rows in ", rows);
  return part;
}

// The used rows of a file that has one row for each label of the part.
Tensor used_rows(const DataPart& part, const Tensor& whole, const std::string& path) {
  if (whole.dim(0) != int64_t(part.labels.size()))
    fail_input(path, " has ", whole.dim(0), " rows, but data.", part.name, "_labels has ",
               part.labels.size(),
               ": features and labels must be of the same samples in one order");
  return index_select(whole, row_tensor(part.rows));
}

void check_features(const Tensor& x, const std::string& path, const DataPart& part) {
  int64_t n = x.dim(0), d = x.dim(1);
  const float* values = x.data<float>();
  bool all_equal = n > 1;
  for (int64_t i = 0; i < n; i++) {
    double squares = 0;
    for (int64_t j = 0; j < d; j++) squares += double(values[i * d + j]) * values[i * d + j];
    if (!(squares > 0))
      fail_input(path, ": row ", part.rows[size_t(i)], " is all zeros; it has no direction");
    all_equal = all_equal && !memcmp(values, values + i * d, size_t(d) * sizeof(float));
  }
  if (all_equal) fail_input(path, ": all rows are equal, so that the features say nothing");
}

Tensor mapped_labels(const DataPart& part, const TransmiterConfig& c, const std::string& path) {
  std::map<int64_t, int64_t> place;
  for (size_t k = 0; k < c.classes.task.size(); k++) {
    int64_t label = c.data.labels.empty() ? int64_t(k) : c.data.labels[k];
    if (!place.emplace(label, k).second)
      fail_input("data.labels: ", label, " belongs to two task classes");
  }
  Rows labels;
  for (int64_t row : part.rows) {
    auto at = place.find(part.labels[size_t(row)]);
    if (at == place.end())
      fail_input(path, ": row ", row, " has label ", part.labels[size_t(row)],
                 ", which is not that of one of the ", c.classes.task.size(),
                 " task classes; see data.labels");
    labels.push_back(at->second);
  }
  return row_tensor(labels);
}

// (names, templates, d)
Tensor stored_text_features(InputFiles& files, const ModelFiles& model, size_t names,
                            const TransmiterConfig& c) {
  Tensor text = files.numbers(model.text);
  if (text.rank() == 2) text = view(text, {text.dim(0), 1, text.dim(1)});
  if (text.rank() != 3 || text.dim(0) != int64_t(names))
    fail_input(model.text, " holds ", text.shape(), ", but ", c.classes.names, " has ", names,
               " names: a row for each name is expected");
  if (text.dim(1) != int64_t(c.classes.templates.size()))
    fail_input(model.text, " holds features of ", text.dim(1), " templates, classes.templates has ",
               c.classes.templates.size());
  return text;
}

// Rows of the task classes among the names.
Rows task_rows(const TransmiterConfig& c, const std::vector<std::string>& names) {
  std::map<std::string, int64_t> place;
  for (size_t i = 0; i < names.size(); i++)
    if (!place.emplace(names[i], i).second)
      fail_input(c.classes.names, ": the name \"", names[i], "\" is there twice");
  Rows rows;
  std::set<std::string> seen;
  for (const std::string& name : c.classes.task) {
    auto at = place.find(name);
    if (at == place.end())
      fail_input("classes.task: \"", name, "\" is not among the ", names.size(), " names of ",
                 c.classes.names, did_you_mean(name, names));
    if (!seen.insert(name).second) fail_input("classes.task: \"", name, "\" is there twice");
    rows.push_back(at->second);
  }
  return rows;
}

// The task classes `rows`, then auxiliary ones; of random_vectors only the task classes.
Rows choose_classes(InputFiles& files, const TransmiterConfig& c,
                    const std::vector<std::string>& names, Rows rows, const Tensor& text,
                    const Tensor& images) {
  size_t classes = rows.size(), m = size_t(c.transmiter.logits);
  if (!c.classes.order.empty()) {
    Rows order = files.integers(c.classes.order);
    if (order.size() < m)
      fail_input("transmiter.logits is ", m, ", but ", c.classes.order, " has only ", order.size(),
                 " classes, ", order.size() < classes ? 0 : order.size() - classes,
                 " of them auxiliary");
    order.resize(m);
    std::set<int64_t> unique;
    for (size_t k = 0; k < m; k++) {
      if (order[k] < 0 || order[k] >= int64_t(names.size()))
        fail_input(c.classes.order, ": row ", order[k], " of ", names.size(), " names");
      if (!unique.insert(order[k]).second)
        fail_input(c.classes.order, ": row ", order[k], " is there twice");
      if (k < classes && order[k] != rows[k])
        fail_input(c.classes.order, ": class ", k, " is \"", names[size_t(order[k])],
                   "\", but classes.task says \"", c.classes.task[k], "\"");
    }
    return order;
  }
  if (c.classes.auxiliary == "random_vectors") return rows;
  methods::AuxiliaryRequest request;
  request.strategy = methods::auxiliary_strategy_named(c.classes.auxiliary);
  request.count = int64_t(m - classes);
  request.seed = uint64_t(c.classes.seed);
  request.word_embeddings = mean(normalize(text), {1});
  request.task_embeddings = index_select(request.word_embeddings, row_tensor(rows));
  request.features = images;
  for (int64_t row : methods::auxiliary_classes(names, c.classes.task, request))
    rows.push_back(row);
  return rows;
}

Tensor combined(InputFiles& files, const std::vector<std::string>& paths, bool weighted,
                const DataPart& part, int64_t classes) {
  std::vector<Tensor> models;
  for (const std::string& path : paths) {
    Tensor z = files.numbers(path);
    if (z.rank() != 2 || z.dim(1) != classes)
      fail_input(path, " holds ", z.shape(), "; logits (samples, ", classes, ") are expected");
    z = used_rows(part, z, path);
    models.push_back(view(z, {1, z.dim(0), classes}));
  }
  return methods::combine_teachers(cat(models, 0), weighted);
}

void add_tuned(InputFiles& files, const ModelFiles& from, ModelData& to, const DataPart& train,
               const DataPart& test, int64_t classes) {
  if (!from.head.empty()) {
    Tensor head = files.numbers(from.head);
    if (head.rank() != 2 || head.dim(0) != classes || head.dim(1) != to.train.dim(1))
      fail_input(from.head, " holds ", head.shape(), "; a classifier (", classes, ", ",
                 to.train.dim(1), ") is expected");
    head = scale(head, to.logit_scale);
    to.tuned_train = methods::zero_shot_logits(to.train, head);
    to.tuned_test = methods::zero_shot_logits(to.test, head);
  } else if (!from.train_logits.empty()) {
    to.tuned_train = combined(files, from.train_logits, from.confidence_weighted, train, classes);
    to.tuned_test = combined(files, from.test_logits, from.confidence_weighted, test, classes);
  }
}

// Rows in another order than the other model's: then the two models agree on no more images than
// two that know nothing of each other.
void check_aligned(const TransmiterConfig& c, const Tensor& weak, const Tensor& strong,
                   const std::string& what) {
  auto answers = [](const Tensor& z) {
    std::vector<int64_t> best;
    for (int64_t i = 0; i < z.dim(0); i++) {
      const float* row = z.data<float>() + i * z.dim(1);
      best.push_back(std::max_element(row, row + z.dim(1)) - row);
    }
    return best;
  };
  Rows a = answers(weak.contiguous()), b = answers(strong.contiguous());
  double n = double(a.size()), agree = 0, chance = 0;
  std::map<int64_t, double> share_a, share_b;
  for (size_t i = 0; i < a.size(); i++) {
    agree += (a[i] == b[i]) / n;
    share_a[a[i]] += 1 / n;
    share_b[b[i]] += 1 / n;
  }
  for (auto& entry : share_a) chance += entry.second * share_b[entry.first];
  if (n < 50 || chance > 0.5) return;  // too little to tell
  if (agree > chance + 3 * std::sqrt(chance * (1 - chance) / n)) return;
  fail_input(what == "train" ? c.weak.train : c.weak.test, " and ",
             what == "train" ? c.strong.train : c.strong.test, ": the zero-shot answers agree on ",
             100 * agree, " % of the rows, no more than by chance (", 100 * chance,
             " %): the rows are not the same images in the same order");
}

}  // namespace

TransmiterData open_transmiter_data(const TransmiterConfig& given) {
  NoGrad no_grad;
  TransmiterConfig c = given;
  auto clean = [&](std::vector<std::string>& names) {
    if (c.classes.clean_names)
      for (std::string& name : names) name = data::clean_name(name);
  };
  clean(c.classes.task);
  clean(c.data.base);
  for (const std::string& prompt : c.classes.templates)
    for (const std::string& name : c.classes.task) methods::fill_template(prompt, name);
  TransmiterData d;
  InputFiles files(d.sources);
  d.classes = int64_t(c.classes.task.size());
  std::vector<std::string> names = files.lines(c.classes.names);
  clean(names);
  Rows task = task_rows(c, names), rows;
  data::Dataset train_images, test_images;
  for (auto& [spec, set] :
       {std::pair{&c.data.train_images, &train_images}, {&c.data.test_images, &test_images}})
    if (!spec->empty()) {
      *set = data::open_dataset(*spec);
      d.sources[*spec] = set->hash;
    }
  DataPart train = open_part(files, "train", c.data.train_labels, c.data.train_rows, train_images);
  DataPart test = open_part(files, "test", c.data.test_labels, c.data.test_rows, test_images);
  d.train_labels = mapped_labels(train, c, c.data.train_labels + c.data.train_images);
  d.test_labels = mapped_labels(test, c, c.data.test_labels + c.data.test_images);

  std::vector<std::pair<const ModelFiles*, ModelData*>> models{{&c.weak, &d.weak},
                                                               {&c.strong, &d.strong}};
  std::map<const ModelFiles*, Seen> seen;
  for (auto& [from, model] : models)
    if (!from->weights.empty())
      seen[from] = see(*from, {names, c.classes.templates, c.classes.vocabulary, true},
                       train_images, test_images, d.sources);
  auto read = [&](const DataPart& part, std::string ModelFiles::*path, Tensor ModelData::*to,
                  Tensor Seen::*images) {
    for (auto& [from, model] : models) {
      auto by_clip = seen.find(from);
      const std::string& file = by_clip == seen.end() ? from->*path : from->weights;
      Tensor whole = by_clip == seen.end() ? files.features(file) : by_clip->second.*images;
      Tensor x = used_rows(part, whole, file);
      check_features(x, file, part);
      model->*to = x;
    }
    files.require_same_data();
    files.forget_data();
  };
  read(train, &ModelFiles::train, &ModelData::train, &Seen::train);
  read(test, &ModelFiles::test, &ModelData::test, &Seen::test);

  for (auto& [from, model] : models) {
    auto by_clip = seen.find(from);
    Tensor text = by_clip == seen.end() ? stored_text_features(files, *from, names.size(), c)
                                        : by_clip->second.text;
    model->logit_scale = by_clip == seen.end() ? from->logit_scale : by_clip->second.logit_scale;
    if (model->train.dim(1) != text.dim(2) || model->test.dim(1) != text.dim(2))
      fail_input(from->train, ", ", from->test, " and ", from->text, " have widths ",
                 model->train.dim(1), ", ", model->test.dim(1), " and ", text.dim(2),
                 "; image and text features of one model are equally wide");
    // the same names in the same order for both models
    if (rows.empty()) rows = choose_classes(files, c, names, task, text, model->train);
    Tensor chosen =
        view(index_select(view(text, {text.dim(0), text.dim(1) * text.dim(2)}), row_tensor(rows)),
             {int64_t(rows.size()), text.dim(1), text.dim(2)});
    Tensor directions;  // in place of the classes that are missing
    int64_t missing = c.transmiter.logits - int64_t(rows.size());
    if (missing > 0)
      directions = view(methods::random_directions(missing, text.dim(2), uint64_t(c.classes.seed)),
                        {missing, 1, text.dim(2)});
    model->head = methods::zero_shot_head(chosen, std::log(model->logit_scale), directions);
    std::vector<double> lengths = sum(square(model->head), {1}).values();
    for (size_t k = 0; k < lengths.size(); k++)
      if (!(lengths[k] > 0))
        fail_input(from->text, ": row ", rows[k], ", \"", names[size_t(rows[k])],
                   "\", is all zeros; it has no direction");
    add_tuned(files, *from, *model, train, test, d.classes);
  }
  for (int64_t row : rows) d.names.push_back(names[size_t(row)]);
  while (int64_t(d.names.size()) < c.transmiter.logits)
    d.names.push_back(concat("direction ", d.names.size()));
  auto task_logits = [&](const ModelData& model, const Tensor& x) {
    return slice(model.zero_shot(x), 1, 0, d.classes);
  };
  check_aligned(c, task_logits(d.weak, d.weak.train), task_logits(d.strong, d.strong.train),
                "train");
  check_aligned(c, task_logits(d.weak, d.weak.test), task_logits(d.strong, d.strong.test), "test");

  if (c.data.protocol == "base_to_novel") {
    std::set<std::string> base(c.data.base.begin(), c.data.base.end());
    for (const std::string& name : c.data.base)
      if (std::find(c.classes.task.begin(), c.classes.task.end(), name) == c.classes.task.end())
        fail_input("data.base: \"", name, "\" is no task class",
                   did_you_mean(name, c.classes.task));
    for (int64_t k = 0; k < d.classes; k++) {
      bool first_half = k < (d.classes + 1) / 2;
      bool is_base = base.empty() ? first_half : base.count(c.classes.task[size_t(k)]) > 0;
      (is_base ? d.base : d.novel).push_back(k);
    }
    if (d.novel.empty())
      fail_input("data.base holds all ", d.classes,
                 " task classes; base_to_novel needs novel ones");
  } else {
    d.base.resize(size_t(d.classes));
    std::iota(d.base.begin(), d.base.end(), 0);
  }
  return d;
}

}  // namespace pupil
