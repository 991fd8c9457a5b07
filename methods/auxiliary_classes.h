// Auxiliary class names, which widen the logits of a few task classes to the dimension in which
// TransMiter works (Park et al., AAAI 2026, "auxiliary class expansion"; code:
// mlvlab/TransMiter@f58085c, models/negative_class.py).
#pragma once
#include "../tensor/ops.h"

namespace pupil::methods {

// With P = the pool without task names, sorted by code point, and the similarity of a word = its
// largest cosine with a task class:
//   random    a uniform draw without replacement, CPython's random.sample
//   hard_neg  the most similar words
//   fps       farthest-point sampling by cosine: always the word whose largest similarity to a task
//             class or a chosen word is smallest
//   easy_fps  fps inside the quarter of most similar words
//   mix_fps   half (rounded down) from that quarter, the rest from the least similar quarter
//   top_std   the largest standard deviation of the word's logit over unlabelled images
//   std_fps   the (C + size of P) / 4 words of largest deviation, then fps by Euclidean distance of
//             logit columns; as in the code, a similarity is at least -1, so that all words farther
//             than 1 from the chosen ones tie
// Ties go to the word that comes first.
enum class AuxiliaryStrategy { random, hard_neg, fps, easy_fps, mix_fps, top_std, std_fps };
AuxiliaryStrategy auxiliary_strategy_named(const std::string&);  // InputError with the nearest name

struct AuxiliaryRequest {
  AuxiliaryStrategy strategy = AuxiliaryStrategy::random;
  int64_t count = 0;
  uint64_t seed = 1;
  // All but `random` need the embeddings, any scale: task (C, d), words (pool size, d). The
  // deviations need image features (n, d) of n >= 2 images too.
  Tensor task_embeddings, word_embeddings, features;
};

// Positions in `pool` of the chosen names, in order. InputError: a name twice in the pool or among
// the task classes, an empty name, fewer words than asked.
std::vector<int64_t> auxiliary_classes(const std::vector<std::string>& pool,
                                       const std::vector<std::string>& task,
                                       const AuxiliaryRequest&);

// Directions instead of names, a control: (count, width) f32, uniform on the unit sphere. Models of
// one width share them, those of another width cannot.
Tensor random_directions(int64_t count, int64_t width, uint64_t seed);

}  // namespace pupil::methods
