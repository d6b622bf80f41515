#include "tokenizer/byte_level.h"

#include <gmock/gmock.h>

#include <filesystem>
#include <random>

#include "io/error.h"
#include "io/json_file.h"
#include "support/growth.h"
#include "support/temporary_directory.h"

namespace openmsa::tokenizer {
namespace {

using nlohmann::json;

json read_data(const std::string& name) { return io::read_json(OPENMSA_TOKENIZER_DATA "/" + name); }

std::string random_bytes(std::size_t count) {
  std::mt19937_64 random(1);
  std::string bytes(count, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random() % 256);
  return bytes;
}

class ByteLevel : public testing::TestWithParam<const char*> {
 protected:
  const ByteLevelTokenizer tokenizer_{read_data(std::string(GetParam()) + ".json")};
};
INSTANTIATE_TEST_SUITE_P(Files, ByteLevel, testing::Values("words", "cased_words", "plain"));

TEST(NormalForms, AreThoseOfHuggingFace) {
  const ByteLevelTokenizer tokenizer(read_data("composed.json"));
  const json cases = read_data("composed.cases.json");
  ASSERT_GT(cases.size(), 10u);
  for (const json& entry : cases) {
    const auto text = entry.at("text").get<std::string>();
    EXPECT_EQ(json(tokenizer.encode(text)), entry.at("ids")) << text;
  }
}

TEST(NormalForms, LeaveBytesThatAreNoUtf8) {
  const ByteLevelTokenizer tokenizer(read_data("composed.json"));
  std::string bytes = random_bytes(5000);
  for (char& byte : bytes) {
    if ((byte & 0x80) != 0) byte = static_cast<char>(byte | 0xf8);  // which no character has
  }
  EXPECT_EQ(tokenizer.decode(tokenizer.encode(bytes)), bytes);
}

TEST(NormalForms, ApplyBesideBytesThatAreNoUtf8) {
  const Normalizer compatible(json({{"type", "NFKD"}}));
  EXPECT_EQ(compatible.apply("\ufb01\xff\ufb01\xe2\x82"),
            "fi\xff"
            "fi\xe2\x82");
  const Normalizer composed(json({{"type", "NFC"}}));
  EXPECT_EQ(composed.apply("e\u0301\xc3"), "\u00e9\xc3");
}

/// Marks of two classes that take turns are far from their order.
TEST(NormalForms, TimeIsLinearInARunOfMarks) {
  const Normalizer decomposed(json({{"type", "NFD"}}));
  const auto normalize = [&](int count) {
    std::string text = "a";
    for (int i = 0; i < count; ++i) text += "\u0301\u0323";
    EXPECT_EQ(decomposed.apply(text).size(), text.size());
  };
  EXPECT_LT(test::growth(normalize, 2000, 20000), 40) << "10 times the marks";
}

TEST_P(ByteLevel, EncodesAsHuggingFaceDoes) {
  const json cases = read_data(std::string(GetParam()) + ".cases.json");
  ASSERT_GT(cases.size(), 10u);
  for (const json& entry : cases) {
    const auto text = entry.at("text").get<std::string>();
    EXPECT_EQ(json(tokenizer_.encode(text)), entry.at("ids")) << text;
    EXPECT_EQ(json(tokenizer_.encode_prompt(text)), entry.at("prompt_ids")) << text;
    EXPECT_EQ(tokenizer_.decode(tokenizer_.encode(text)), text);
  }
}

TEST_P(ByteLevel, BytesThatAreNoUtf8SurviveARoundTrip) {
  const std::string bytes = random_bytes(5000);
  EXPECT_EQ(tokenizer_.decode(tokenizer_.encode(bytes)), bytes);
}

/// Quadratic merging would take hours.
TEST_P(ByteLevel, OneLongWordIsNoBurden) {
  const std::string word(1 << 18, 'a');
  const auto tokens = tokenizer_.encode(word);
  EXPECT_LT(tokens.size(), word.size());
  EXPECT_EQ(tokenizer_.decode(tokens), word);
}

TEST_P(ByteLevel, UnknownTokensDecodeToNothing) {
  EXPECT_EQ(tokenizer_.decode(-1), "");
  EXPECT_EQ(tokenizer_.decode(1 << 20), "");
}

struct Unsupported {
  const char* name;
  const char* pointer;  // into the file
  json value;
  const char* message;
};
std::ostream& operator<<(std::ostream& out, const Unsupported& test) { return out << test.name; }

class Refusal : public testing::TestWithParam<Unsupported> {};

TEST_P(Refusal, NamesTheFeature) {
  json file = read_data("words.json");
  file[json::json_pointer(GetParam().pointer)] = GetParam().value;
  try {
    const ByteLevelTokenizer tokenizer(file);
    FAIL() << "accepted";
  } catch (const io::InputError& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr(GetParam().message));
  }
}

INSTANTIATE_TEST_SUITE_P(
    Features, Refusal,
    testing::Values(
        Unsupported{"Normalizer", "/normalizer", {{"type", "Lowercase"}}, "normalizer: Lowercase is not supported"},
        Unsupported{"Unigram", "/model/type", "Unigram", "\"Unigram\" is not supported"},
        Unsupported{"Dropout", "/model/dropout", 0.1, "dropout is not supported"},
        Unsupported{"Suffix", "/model/end_of_word_suffix", "</w>", "end_of_word_suffix is not supported"},
        Unsupported{"PreTokenizer", "/pre_tokenizer/pretokenizers/0/type", "Digits", "Digits is not supported"},
        Unsupported{"NoBytes", "/pre_tokenizer", nullptr, "ByteLevel"},
        Unsupported{"PrefixSpace", "/pre_tokenizer/pretokenizers/1/add_prefix_space", true, "add_prefix_space"},
        Unsupported{"Behavior", "/pre_tokenizer/pretokenizers/0/behavior", "Removed", "the behavior \"Removed\""},
        Unsupported{"Literal", "/pre_tokenizer/pretokenizers/0/pattern", {{"String", " "}}, "pattern"},
        Unsupported{"Regex", "/pre_tokenizer/pretokenizers/0/pattern/Regex", "a(", "pattern: missing closing"},
        Unsupported{"Decoder", "/decoder/type", "WordPiece", "decoder: WordPiece is not supported"},
        Unsupported{"NoDecoder", "/decoder", nullptr, "decoder: none is not supported"},
        Unsupported{"DecodersInSequence",
                    "/decoder",
                    {{"type", "Sequence"}, {"decoders", {{{"type", "ByteLevel"}}, {{"type", "Fuse"}}}}},
                    "decoder: Fuse is not supported"},
        Unsupported{"ManyPatterns", "/pre_tokenizer/pretokenizers",
                    std::vector<json>(20000, read_data("words.json").at("/pre_tokenizer/pretokenizers/0"_json_pointer)),
                    "pretokenizers: more than 32 parts"},
        Unsupported{"PostProcessor", "/post_processor", {{"type", "BertProcessing"}}, "BertProcessing"},
        Unsupported{"Template", "/post_processor/processors/1/special_tokens", json::object(), "no ids of \"<s>\""},
        Unsupported{"LeftStrip", "/added_tokens/0/lstrip", true, "lstrip is not supported"},
        Unsupported{"NoContent", "/added_tokens/0/content", "", "content"},
        Unsupported{"RepeatedNumber", "/model/vocab/a", 3u, "occurs twice"},
        Unsupported{"TakenNumber", "/added_tokens/2/id", 3u, "has the number of another token"},
        Unsupported{"TokenNumber", "/model/vocab/a", -3, "model.vocab: expected a token number"},
        Unsupported{"HugeNumber", "/model/vocab/a", 1ull << 40, "model.vocab: expected a token number"},
        Unsupported{"Byte", "/model/vocab", {{"a", 1u}}, "no token for the byte 0"},
        Unsupported{"Vocabulary", "/model/vocab", json::array(), "model.vocab: expected an object"},
        Unsupported{"Merges", "/model/merges", "a b", "model.merges: expected a list"},
        Unsupported{"Merge", "/model/merges/0", "ab", "expected a pair of tokens"},
        Unsupported{"MergeOfNothing", "/model/merges/0", {"a", "qqq"}, "qqq' in the vocabulary"}),
    [](const auto& info) { return info.param.name; });

TEST(Merges, MayBeWrittenAsPairsInOneString) {
  json file = read_data("words.json");
  for (json& merge : file["model"]["merges"]) merge = merge[0].get<std::string>() + " " + merge[1].get<std::string>();
  const ByteLevelTokenizer tokenizer(file);
  for (const json& entry : read_data("words.cases.json")) {
    EXPECT_EQ(json(tokenizer.encode(entry.at("text").get<std::string>())), entry.at("ids"));
  }
}

/// words.json with one more token, which is found as it is.
ByteLevelTokenizer tokenizer_with(const std::string& content) {
  json file = read_data("words.json");
  file["added_tokens"].push_back({{"id", 1u << 20}, {"content", content}});
  return ByteLevelTokenizer(file);
}

/// Half the places of the text begin a token of half its length that lacks the end.
TEST(AddedTokenOfAFile, TimeIsLinearInTheText) {
  const auto encode = [](int count) {
    const std::string half(static_cast<std::size_t>(count), 'a');
    const ByteLevelTokenizer tokenizer = tokenizer_with(half + "A");
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(half + half)), half + half);
    EXPECT_EQ(tokenizer.encode(half + "A"), std::vector<std::int32_t>{1 << 20});
  };
  EXPECT_LT(test::growth(encode, 5000, 50000), 40) << "10 times the text";
}

TEST(AddedTokenOfAFile, IsRefusedWhereItsBytesAreTooMany) {
  EXPECT_NO_THROW(tokenizer_with(std::string(1 << 20, 'a')));
  EXPECT_THROW(tokenizer_with(std::string(9 << 20, 'a')), io::InputError);
}

TEST(LoadTokenizer, ReadsBytesWhereThereIsNoFile) {
  const test::TemporaryDirectory folder;
  const auto tokenizer = load_tokenizer(folder.path());
  const std::string bytes("a\0\xff", 3);
  EXPECT_EQ(tokenizer->encode(bytes), (std::vector<std::int32_t>{97, 0, 255}));
  EXPECT_EQ(tokenizer->encode_prompt(bytes), tokenizer->encode(bytes));
  EXPECT_EQ(tokenizer->decode(tokenizer->encode(bytes)), bytes);
  EXPECT_THROW(tokenizer->decode(256), io::InputError);
}

TEST(LoadTokenizer, NotesWhatChangesNothingHere) {
  const test::TemporaryDirectory folder;
  json file = read_data("words.json");
  file["truncation"] = {{"max_length", 5}};
  file["padding"] = {{"strategy", "BatchLongest"}};
  file["decoder"] = {{"type", "Sequence"}, {"decoders", {file["decoder"]}}};
  io::write_json(folder / "tokenizer.json", file);
  std::vector<std::string> notes;
  const auto tokenizer = load_tokenizer(folder.path(), [&](const std::string& note) { notes.push_back(note); });
  const std::string path = folder / "tokenizer.json";
  EXPECT_THAT(notes, testing::ElementsAre(path + ": truncation is ignored", path + ": padding is ignored"));
  const std::string text = "the quick brown fox jumps over the lazy dog";
  EXPECT_EQ(tokenizer->encode(text), ByteLevelTokenizer(read_data("words.json")).encode(text));
}

TEST(LoadTokenizer, NamesTheFile) {
  const test::TemporaryDirectory folder;
  std::filesystem::copy(OPENMSA_TOKENIZER_DATA "/words.json", folder / "tokenizer.json");
  EXPECT_EQ(load_tokenizer(folder.path())->encode("<s>").size(), 1u);
  io::write_json(folder / "tokenizer.json", {{"model", {{"type", "WordPiece"}}}});
  try {
    load_tokenizer(folder.path());
    FAIL() << "accepted";
  } catch (const io::InputError& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr(folder / "tokenizer.json"));
  }
}

}  // namespace
}  // namespace openmsa::tokenizer
