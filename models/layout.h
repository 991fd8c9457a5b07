// The names that other libraries give to the parameters of our networks. Numbers stay what they
// are: a rule joins or cuts rows and may transpose, so that gradients translate by the same rule.
#pragma once
#include "models.h"

namespace pupil::models {

// One side has one name; with several on the other, its rows are theirs one after the other. In
// names `*`, alone or behind other letters, is the number of a block and `@` weight or bias; an
// empty one of ours: not needed.
struct Rule {
  std::vector<std::string> ours, theirs;
  std::vector<int> shares{};  // of the rows, of the side with several names; empty: equal
  bool transposed = false;
  int ones = 0;  // axes of size 1 that theirs has besides, at the end
};

struct Layout {
  std::string name;                   // "hf_vit", its library first
  std::string mark;                   // a name that only this layout has, without a prefix
  std::vector<std::string> prefixes;  // that may stand in front of all names but `bare` ones
  std::vector<Rule> rules;
  std::vector<std::string> bare;     // beginnings of names that take no prefix: "classifier"
  std::vector<std::string> dropped;  // without a part in the network: "mask_token"
  // What images must look like for its files, where they are not a network's of ours (see
  // preprocessing_of).
  std::string input{};
};

const std::vector<Layout>& layouts();
const Layout& layout_named(const std::string& name);
// The layout of a file with these names, or null where they are our own (timm, torchvision).
const Layout* layout_of(const std::vector<std::string>& names);

// What a layout makes of the names in one file.
class Translation {
 public:
  struct Entry {
    std::vector<std::string> ours, theirs;  // names in full
    std::vector<int> shares;
    bool transposed;
    int ones;
  };
  // theirs: the names of a file. `unknown` gets those that no rule knows.
  Translation(const Layout&, const std::vector<std::string>& theirs);
  // The other way: ours -> the layout's, with this prefix.
  static Translation from_ours(const Layout&, const std::vector<std::string>& ours,
                               const std::string& prefix);

  std::vector<Entry> entries;
  std::vector<std::string> dropped, unknown;

 private:
  Translation() = default;
};

using ReadTensor = std::function<Tensor(const std::string& name)>;
// One tensor of an entry, by its place among the names of its side, from those of the other side.
Tensor to_ours(const Translation::Entry&, size_t which, const ReadTensor& theirs);
Tensor to_theirs(const Translation::Entry&, size_t which, const ReadTensor& ours);

// A file of ours under the layout's names. InputError for a name that has no place there.
std::shared_ptr<const data::Weights> in_names_of(const Layout&, const std::string& prefix,
                                                 std::shared_ptr<const data::Weights>);

// The file, whose names are ours, under those of timm or torchvision for a network with the same
// arithmetic; the metadata says which network that is here. InputError where there is none.
std::shared_ptr<const data::Weights> in_names_of_library(const std::string& library, const Model&,
                                                         std::shared_ptr<const data::Weights>);

// The libraries that give a network these names: timm, torchvision, openai, hf. Some ResNets have
// two, networks of research code none.
std::vector<std::string> libraries_of(const std::vector<std::string>& names);
std::vector<std::string> names_of(const data::Weights&);

// The file under our names, read as it is asked for; the file itself where its names are ours.
std::shared_ptr<const data::Weights> in_our_names(std::shared_ptr<const data::Weights>);

}  // namespace pupil::models
