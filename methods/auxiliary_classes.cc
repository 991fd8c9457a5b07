#include "auxiliary_classes.h"

#include <algorithm>
#include <numeric>
#include <set>

#include "../data/python_random.h"
#include "../tensor/launch.h"
#include "../tensor/random.h"
#include "method.h"

namespace pupil::methods {

AuxiliaryStrategy auxiliary_strategy_named(const std::string& name) {
  const std::vector<std::string> names = {"random",  "hard_neg", "fps",    "easy_fps",
                                          "mix_fps", "top_std",  "std_fps"};
  for (size_t i = 0; i < names.size(); i++)
    if (names[i] == name) return AuxiliaryStrategy(i);
  fail_input("unknown auxiliary strategy '", name, "'", did_you_mean(name, names));
}

namespace {

struct Matrix {  // rows in f64
  int64_t rows, width;
  std::vector<double> values;
  const double* row(int64_t i) const { return values.data() + i * width; }
  double* row(int64_t i) { return values.data() + i * width; }
};

Matrix matrix(const Tensor& t) { return {t.dim(0), t.dim(1), t.values()}; }

double dot(const double* a, const double* b, int64_t n) {
  double sum = 0;
  for (int64_t j = 0; j < n; j++) sum += a[j] * b[j];
  return sum;
}

double minus_distance(const double* a, const double* b, int64_t n) {
  double sum = 0;
  for (int64_t j = 0; j < n; j++) sum += (a[j] - b[j]) * (a[j] - b[j]);
  return -std::sqrt(sum);
}

using Similarity = double (*)(const double*, const double*, int64_t);

// Raises near[i] to the similarity of candidate i with `to`.
void approach(std::vector<double>& near, const Matrix& candidates, const double* to,
              Similarity similarity) {
  double* best = near.data();
  parallel_for(candidates.rows, candidates.rows * candidates.width, [=, &candidates](int64_t i) {
    best[i] = std::max(best[i], similarity(candidates.row(i), to, candidates.width));
  });
}

// The largest similarity of each candidate with a row of `selected`, at least -1.
std::vector<double> nearness(const Matrix& candidates, const Matrix& selected,
                             Similarity similarity) {
  std::vector<double> near(size_t(candidates.rows), -1);
  for (int64_t k = 0; k < selected.rows; k++)
    approach(near, candidates, selected.row(k), similarity);
  return near;
}

// Farthest-point sampling: the candidate least similar to all that was selected, `count` times.
std::vector<int64_t> farthest(const Matrix& candidates, const Matrix& selected, int64_t count,
                              Similarity similarity) {
  std::vector<double> near = nearness(candidates, selected, similarity);  // [auxiliary_classes 3]
  std::vector<int64_t> chosen;
  std::vector<bool> taken(near.size());
  while (int64_t(chosen.size()) < count) {
    size_t best = near.size();
    for (size_t i = 0; i < near.size(); i++)
      if (!taken[i] && (best == near.size() || near[i] < near[best])) best = i;
    taken[best] = true;
    chosen.push_back(int64_t(best));
    approach(near, candidates, candidates.row(int64_t(best)), similarity);
  }
  return chosen;
}

// Positions of the `count` largest values, descending.
std::vector<int64_t> largest(const std::vector<double>& values, int64_t count) {
  std::vector<int64_t> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return values[size_t(a)] > values[size_t(b)]; });
  order.resize(size_t(count));
  return order;
}

Matrix rows_at(const Matrix& m, const std::vector<int64_t>& rows) {
  Matrix picked{int64_t(rows.size()), m.width, {}};
  for (int64_t i : rows) picked.values.insert(picked.values.end(), m.row(i), m.row(i) + m.width);
  return picked;
}

void make_unit_rows(Matrix& m) {
  for (int64_t i = 0; i < m.rows; i++) {
    double norm = std::sqrt(dot(m.row(i), m.row(i), m.width));
    for (int64_t j = 0; j < m.width; j++) m.row(i)[j] /= norm;
  }
}

// Row c: the logits of class c over the images, which are normalised; the classes are not.
Matrix logit_columns(const Matrix& classes, const Matrix& images) {
  Matrix columns{classes.rows, images.rows, {}};
  columns.values.resize(size_t(classes.rows * images.rows));
  double* to = columns.values.data();
  int64_t n = images.rows;
  parallel_for(classes.rows, classes.rows * n * images.width, [=, &classes, &images](int64_t c) {
    for (int64_t i = 0; i < n; i++)
      to[c * n + i] = dot(classes.row(c), images.row(i), images.width);
  });
  return columns;
}

std::vector<double> deviations(const Matrix& rows) {
  std::vector<double> result;
  for (int64_t i = 0; i < rows.rows; i++) {
    const double* p = rows.row(i);
    double mean = std::accumulate(p, p + rows.width, 0.0) / double(rows.width), squares = 0;
    for (int64_t j = 0; j < rows.width; j++) squares += (p[j] - mean) * (p[j] - mean);
    result.push_back(std::sqrt(squares / double(rows.width - 1)));
  }
  return result;
}

void check_names(const char* what, const std::vector<std::string>& names) {
  std::set<std::string> seen;
  for (const std::string& name : names) {
    if (name.empty()) fail_input("an empty name among the ", what);
    if (!seen.insert(name).second) fail_input("the name \"", name, "\" is twice in the ", what);
  }
}

std::vector<int64_t> at(const std::vector<int64_t>& from, const std::vector<int64_t>& positions) {
  std::vector<int64_t> picked;
  for (int64_t i : positions) picked.push_back(from[size_t(i)]);
  return picked;
}

// Positions in the sorted words, whose embeddings are `words`.
std::vector<int64_t> choose(const AuxiliaryRequest& r, Matrix words) {
  Matrix task = matrix(r.task_embeddings);
  bool by_deviation =
      r.strategy == AuxiliaryStrategy::top_std || r.strategy == AuxiliaryStrategy::std_fps;
  int64_t quarter = (words.rows + (r.strategy == AuxiliaryStrategy::std_fps ? task.rows : 0)) / 4;
  quarter = std::min(quarter, words.rows);
  auto enough = [&](int64_t wanted) {
    if (quarter < wanted)
      fail_input("this auxiliary strategy chooses from the ", quarter,
                 " names of one quarter of the pool; ", wanted, " were asked for");
  };
  if (by_deviation) {
    PUPIL_CHECK(r.features && r.features.rank() == 2 && r.features.dim(1) == words.width,
                "auxiliary_classes: image features (n, ", words.width, ") expected");
    if (r.features.dim(0) < 2)
      fail_input("this auxiliary strategy compares deviations over images; give it at least two");
    Matrix images = matrix(r.features);
    make_unit_rows(images);
    Matrix columns = logit_columns(words, images);
    std::vector<double> spread = deviations(columns);
    // [auxiliary_classes 4]
    if (r.strategy == AuxiliaryStrategy::top_std) return largest(spread, r.count);
    enough(r.count);
    std::vector<int64_t> part = largest(spread, quarter);
    return at(part, farthest(rows_at(columns, part), logit_columns(task, images), r.count,
                             minus_distance));
  }
  make_unit_rows(words);
  make_unit_rows(task);
  if (r.strategy == AuxiliaryStrategy::fps) return farthest(words, task, r.count, dot);
  std::vector<double> similarity = nearness(words, task, dot);  // [auxiliary_classes 2]
  if (r.strategy == AuxiliaryStrategy::hard_neg) return largest(similarity, r.count);
  auto sample = [&](const std::vector<int64_t>& part, int64_t count) {
    return at(part, farthest(rows_at(words, part), task, count, dot));
  };
  std::vector<int64_t> near = largest(similarity, quarter);
  if (r.strategy == AuxiliaryStrategy::easy_fps) {
    enough(r.count);
    return sample(near, r.count);
  }
  enough(r.count - r.count / 2);
  for (double& s : similarity) s = -s;
  std::vector<int64_t> chosen = sample(near, r.count / 2);
  for (int64_t i : sample(largest(similarity, quarter), r.count - r.count / 2)) chosen.push_back(i);
  return chosen;
}

}  // namespace

std::vector<int64_t> auxiliary_classes(const std::vector<std::string>& pool,
                                       const std::vector<std::string>& task,
                                       const AuxiliaryRequest& r) {
  check_names("names that auxiliary classes are chosen from", pool);
  check_names("task classes", task);
  std::set<std::string> known(task.begin(), task.end());
  std::vector<int64_t> words;
  for (size_t i = 0; i < pool.size(); i++)
    if (!known.count(pool[i])) words.push_back(int64_t(i));
  std::sort(words.begin(), words.end(),
            [&](int64_t a, int64_t b) { return pool[size_t(a)] < pool[size_t(b)]; });
  int64_t size = int64_t(words.size());
  if (r.count < 0 || r.count > size)
    fail_input("asked for ", r.count, " auxiliary classes, but the pool has only ", size,
               " names that are no task class");
  if (r.strategy == AuxiliaryStrategy::random)
    return at(words, data::PythonRandom(r.seed).sample(size, r.count));  // [auxiliary_classes 1]
  PUPIL_CHECK(r.task_embeddings && r.word_embeddings && r.task_embeddings.rank() == 2 &&
                  r.word_embeddings.rank() == 2 &&
                  r.task_embeddings.dim(0) == int64_t(task.size()) &&
                  r.word_embeddings.dim(0) == int64_t(pool.size()) &&
                  r.task_embeddings.dim(1) == r.word_embeddings.dim(1),
              "auxiliary_classes: embeddings of ", task.size(), " task classes and ", pool.size(),
              " words expected");
  return at(words, choose(r, rows_at(matrix(r.word_embeddings), words)));
}

Tensor random_directions(int64_t count, int64_t width, uint64_t seed) {
  RngKey key{seed, stream_id("auxiliary directions"), 0};
  std::vector<double> values(size_t(count * width));
  for (size_t i = 0; i < values.size(); i++) values[i] = normal(key, int64_t(i));
  // [auxiliary_classes 5]
  return normalize(from(std::span<const double>(values), {count, width}, DType::f32));
}

Method auxiliary_classes_pipeline() {
  Method m;
  m.name = "auxiliary_classes";
  m.summary = "names that widen C task classes to M logits";
  m.source = "Park et al., AAAI 2026; mlvlab/TransMiter@f58085c, models/negative_class.py";
  m.options = {
      {"classes.auxiliary", std::string("random"),
       "random, hard_neg, fps, easy_fps, mix_fps, top_std, std_fps or random_vectors", "paper"},
      {"classes.seed", int64_t(AuxiliaryRequest().seed), "of random and random_vectors",
       "official code"},
      {"classes.clean_names", false,
       "repair names that are UTF-8 read as Latin-1, straighten quotes",
       "CLIP's tokenizer does so with every text"}};
  m.explanation.symbols = {
      {"P", "", "the pool without task names, sorted by code point; K = M - C are drawn"},
      {"s", "(P)", "similarity of a word: its largest cosine with a task class"}};
  m.explanation.equations = {
      {"1", "random: CPython's random.Random(seed).sample(P, K)"},
      {"2",
       "hard_neg: the K largest s; easy_fps, mix_fps: 3 among the quarter of largest s, or half "
       "from the quarter of smallest"},
      {"3",
       "fps: K times the word whose largest similarity to task classes and chosen words is "
       "smallest"},
      {"4",
       "top_std: the K largest deviations of the word's logit over unlabelled images; std_fps: "
       "3 among the quarter of largest, by distance of logit columns"},
      {"5", "random_vectors: normal numbers divided by their length, no names"}};
  m.explanation.cases = {"transmiter.sample_indices", "transmiter.auxiliary_classes"};
  return m;
}

}  // namespace pupil::methods
