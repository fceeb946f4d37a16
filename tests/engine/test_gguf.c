#include "engine/gguf.h"
#include "gguf_writer.h"

#include <fcntl.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static gguf_writer_t writer;

/* Every kind of value and two tensors; the data is 2 x 64 bytes. */
static void write_small_file(void)
{
    static const char *const WORDS[] = {"a", "", "long word"};
    static const int32_t NUMBERS[] = {1, -2, 3};
    gguf_header(&writer, 2, 8);
    gguf_key_text(&writer, "general.architecture", "llama");
    gguf_key_u32(&writer, "count", 7);
    gguf_key(&writer, "signed", GGUF_I64);
    gguf_u64(&writer, (uint64_t)-1);
    gguf_key(&writer, "wide", GGUF_I64);
    gguf_u64(&writer, 4000000000u);
    gguf_key(&writer, "ratio", GGUF_F32);
    gguf_u32(&writer, 0x3f000000);
    gguf_key(&writer, "flag", GGUF_BOOL);
    gguf_raw(&writer, "\1", 1);
    gguf_key_texts(&writer, "words", WORDS, 3);
    gguf_key_i32s(&writer, "numbers", NUMBERS, 3);
    gguf_tensor(&writer, "matrix", 4, 4, KV_TENSOR_F32, 64);
    gguf_tensor(&writer, "vector", 16, 1, KV_TENSOR_F32, 0);
    gguf_pad(&writer, 32);
    for (uint32_t i = 0; i < 32; i++) {
        gguf_u32(&writer, i);
    }
}

static kv_status_t open_bytes(size_t count, kv_error_t *error)
{
    kv_gguf_t *gguf;
    kv_status_t status = kv_gguf_open(gguf_write(&writer, count), &gguf, error);
    if (status == KV_OK) {
        kv_gguf_close(gguf);
    }
    return status;
}

static void assert_refused(const char *word)
{
    kv_error_t error = {0};
    assert_int_equal(open_bytes(writer.count, &error), KV_INVALID);
    if (strstr(error.text, word) == NULL) {
        fail_msg("\"%s\" does not name %s", error.text, word);
    }
}

static void values_come_back(void **state)
{
    (void)state;
    kv_error_t error;
    kv_gguf_t *gguf;
    write_small_file();
    assert_int_equal(kv_gguf_open(gguf_write(&writer, writer.count), &gguf, &error), KV_OK);
    kv_gguf_string_t text, *words;
    assert_int_equal(kv_gguf_string(gguf, "general.architecture", &text, &error), KV_OK);
    assert_int_equal(text.bytes, 5);
    assert_memory_equal(text.text, "llama", 5);
    uint32_t number = 0;
    assert_int_equal(kv_gguf_u32(gguf, "count", &number, &error), KV_OK);
    assert_int_equal(number, 7);
    assert_int_equal(kv_gguf_u32(gguf, "wide", &number, &error), KV_OK);
    assert_true(number == 4000000000u);
    float ratio = 0;
    assert_int_equal(kv_gguf_f32(gguf, "ratio", &ratio, &error), KV_OK);
    assert_true(ratio == 0.5f);
    bool flag = false;
    assert_int_equal(kv_gguf_bool(gguf, "flag", &flag, &error), KV_OK);
    assert_true(flag);
    size_t count = 0;
    assert_int_equal(kv_gguf_strings(gguf, "words", &words, &count, &error), KV_OK);
    assert_int_equal(count, 3);
    assert_int_equal(words[1].bytes, 0);
    assert_memory_equal(words[2].text, "long word", 9);
    free(words);
    const void *integers;
    assert_int_equal(kv_gguf_integers(gguf, "numbers", &integers, &count, &error), KV_OK);
    assert_int_equal(count, 3);
    assert_int_equal((int32_t)kv_get_u32((const uint8_t *)integers + 4), -2);
    const kv_gguf_tensor_t *tensor;
    assert_int_equal(kv_gguf_tensor(gguf, "matrix", &tensor, &error), KV_OK);
    assert_int_equal(tensor->bytes, 64);
    assert_int_equal(tensor->dimensions[3], 1);
    assert_int_equal(kv_get_u32(tensor->data), 16);
    kv_gguf_close(gguf);
}

static void a_wrong_question_is_answered(void **state)
{
    (void)state;
    kv_error_t error;
    kv_gguf_t *gguf;
    uint32_t number;
    float ratio;
    bool flag;
    size_t count;
    const void *integers;
    kv_gguf_string_t text, *words;
    const kv_gguf_tensor_t *tensor;
    write_small_file();
    assert_int_equal(kv_gguf_open(gguf_write(&writer, writer.count), &gguf, &error), KV_OK);
    assert_int_equal(kv_gguf_u32(gguf, "absent", &number, &error), KV_MISSING);
    assert_non_null(strstr(error.text, "absent"));
    assert_int_equal(kv_gguf_u32(gguf, "signed", &number, &error), KV_INVALID);
    assert_non_null(strstr(error.text, "signed"));
    assert_int_equal(kv_gguf_u32(gguf, "ratio", &number, &error), KV_INVALID);
    assert_int_equal(kv_gguf_u32(gguf, "words", &number, &error), KV_INVALID);
    assert_int_equal(kv_gguf_f32(gguf, "count", &ratio, &error), KV_INVALID);
    assert_int_equal(kv_gguf_bool(gguf, "count", &flag, &error), KV_INVALID);
    assert_int_equal(kv_gguf_string(gguf, "count", &text, &error), KV_INVALID);
    assert_int_equal(kv_gguf_strings(gguf, "numbers", &words, &count, &error), KV_INVALID);
    assert_int_equal(kv_gguf_strings(gguf, "count", &words, &count, &error), KV_INVALID);
    assert_int_equal(kv_gguf_integers(gguf, "words", &integers, &count, &error), KV_INVALID);
    assert_int_equal(kv_gguf_tensor(gguf, "absent", &tensor, &error), KV_MISSING);
    kv_gguf_close(gguf);
    assert_int_equal(kv_gguf_open("/nowhere/x.gguf", &gguf, &error), KV_MISSING);
    assert_int_equal(kv_gguf_open(kv_test_folder(), &gguf, &error), KV_INVALID);
}

static void lies_are_named(void **state)
{
    (void)state;
    write_small_file();
    writer.bytes[0] = 'g';
    assert_refused("GGUF");
    write_small_file();
    kv_put_u32(writer.bytes + 4, 9);
    assert_refused("version is 9");
    write_small_file();
    kv_put_u64(writer.bytes + 8, UINT64_MAX);
    assert_refused("tensors");
    write_small_file();
    kv_put_u64(writer.bytes + 24, UINT64_MAX);
    assert_refused("the name of key 0");

    gguf_header(&writer, 0, 1);
    gguf_key(&writer, "flag", GGUF_BOOL);
    gguf_raw(&writer, "\2", 1);
    assert_refused("flag is 2");
    gguf_header(&writer, 0, 1);
    gguf_key(&writer, "odd", 99);
    assert_refused("odd is 99");
    gguf_header(&writer, 0, 1);
    gguf_key(&writer, "nested", GGUF_ARRAY);
    gguf_u32(&writer, GGUF_ARRAY);
    gguf_u64(&writer, UINT64_MAX);
    assert_refused("nested");
    gguf_header(&writer, 0, 1);
    gguf_key(&writer, "many", GGUF_ARRAY);
    gguf_u32(&writer, GGUF_U32);
    gguf_u64(&writer, UINT64_MAX / 4 + 2); /* x 4 is 4 again */
    gguf_u32(&writer, 0);
    assert_refused("many");
    gguf_header(&writer, 0, 2);
    gguf_key_u32(&writer, "twin", 1);
    gguf_key_u32(&writer, "twin", 2);
    assert_refused("twin");
    gguf_header(&writer, 0, 1);
    gguf_key_u32(&writer, "general.alignment", 48);
    assert_refused("general.alignment is 48");
    gguf_header(&writer, 0, 1);
    gguf_key_u32(&writer, "bad\nname", 1);
    assert_refused("0x0a");
}

static void tensors_stay_in_the_file(void **state)
{
    (void)state;
    static const struct {
        uint64_t columns, rows;
        uint32_t type;
        uint64_t offset;
        const char *word;
    } CASES[] = {
        {16, 1, KV_TENSOR_F32, 16, "alignment"}, {16, 1, KV_TENSOR_F32, 96, "beyond the data"},
        {16, 1, KV_TENSOR_F32, UINT64_MAX - 31, "beyond the data"},
        {16, UINT64_MAX / 16, KV_TENSOR_F32, 0, "larger than the file"},
        {1ull << 62, 1, KV_TENSOR_F32, 0, "larger than the file"},
        {0, 1, KV_TENSOR_F32, 0, "dimension 0"}, {33, 1, KV_TENSOR_Q4_1, 0, "dimension 0"},
        {128, 1, KV_TENSOR_Q6_K, 0, "dimension 0"},
        {64, 2, KV_TENSOR_Q8_0, 0, "beyond the data"}, /* 136 bytes of 128 */
    };
    for (size_t i = 0; i < sizeof CASES / sizeof CASES[0]; i++) {
        gguf_header(&writer, 1, 0);
        gguf_tensor(&writer, "t", CASES[i].columns, CASES[i].rows, CASES[i].type, CASES[i].offset);
        gguf_pad(&writer, 32);
        for (size_t k = 0; k < 16; k++) {
            gguf_u64(&writer, k);
        }
        assert_refused(CASES[i].word);
    }
    gguf_header(&writer, 2, 0);
    gguf_tensor(&writer, "t", 1, 1, KV_TENSOR_F32, 0);
    gguf_tensor(&writer, "t", 1, 1, KV_TENSOR_F32, 0);
    gguf_pad(&writer, 32);
    gguf_u64(&writer, 0);
    assert_refused("twice");
}

static void a_foreign_tensor_type_waits_until_it_is_asked_for(void **state)
{
    (void)state;
    kv_error_t error;
    kv_gguf_t *gguf;
    const kv_gguf_tensor_t *tensor;
    gguf_header(&writer, 1, 0);
    gguf_tensor(&writer, "t", 32, 1, 6, 0); /* Q5_0 */
    gguf_pad(&writer, 32);
    gguf_u64(&writer, 0);
    assert_int_equal(kv_gguf_open(gguf_write(&writer, writer.count), &gguf, &error), KV_OK);
    assert_int_equal(kv_gguf_tensor(gguf, "t", &tensor, &error), KV_INVALID);
    assert_non_null(strstr(error.text, "type of tensor t is 6"));
    kv_gguf_close(gguf);
}

static void a_file_cut_anywhere_is_refused(void **state)
{
    (void)state;
    write_small_file();
    for (size_t count = 0; count < writer.count; count++) {
        kv_error_t error = {0};
        if (open_bytes(count, &error) != KV_INVALID || strlen(error.text) < 20) {
            fail_msg("cut after %zu of %zu bytes: \"%s\"", count, writer.count, error.text);
        }
    }
    kv_error_t error;
    assert_int_equal(open_bytes(writer.count, &error), KV_OK);
}

static volatile uint8_t reads_kept; /* so that the compiler leaves the reads in */

/* Reads all that a damaged file still says: nothing outside the mapping may be touched. */
static void read_everything(const char *path)
{
    static const char *const KEYS[] = {"general.architecture", "count", "signed", "ratio", "flag",
        "words", "numbers", "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"};
    static const char *const TENSORS[] = {"matrix", "vector", "output_norm.weight"};
    kv_gguf_t *gguf;
    kv_error_t error;
    if (kv_gguf_open(path, &gguf, &error) != KV_OK) {
        return;
    }
    uint8_t sum = 0;
    for (size_t i = 0; i < sizeof KEYS / sizeof KEYS[0]; i++) {
        uint32_t number;
        float ratio;
        bool flag;
        kv_gguf_string_t text, *texts;
        const void *integers;
        size_t count;
        kv_gguf_u32(gguf, KEYS[i], &number, &error);
        kv_gguf_f32(gguf, KEYS[i], &ratio, &error);
        kv_gguf_bool(gguf, KEYS[i], &flag, &error);
        if (kv_gguf_string(gguf, KEYS[i], &text, &error) == KV_OK && text.bytes > 0) {
            sum += (uint8_t)text.text[text.bytes - 1];
        }
        if (kv_gguf_integers(gguf, KEYS[i], &integers, &count, &error) == KV_OK && count > 0) {
            sum += ((const uint8_t *)integers)[4 * count - 1];
        }
        if (kv_gguf_strings(gguf, KEYS[i], &texts, &count, &error) == KV_OK) {
            for (size_t k = 0; k < count; k++) {
                sum += texts[k].bytes > 0 ? (uint8_t)texts[k].text[texts[k].bytes - 1] : 0;
            }
            free(texts);
        }
    }
    for (size_t i = 0; i < sizeof TENSORS / sizeof TENSORS[0]; i++) {
        const kv_gguf_tensor_t *tensor;
        if (kv_gguf_tensor(gguf, TENSORS[i], &tensor, &error) == KV_OK && tensor->bytes > 0) {
            sum += ((const uint8_t *)tensor->data)[tensor->bytes - 1];
        }
    }
    reads_kept = sum;
    kv_gguf_close(gguf);
}

static void flipped_bytes_of_a_small_file_do_no_harm(void **state)
{
    (void)state;
    uint64_t random = kv_test_seed();
    int rounds = kv_test_long() ? 200000 : 5000;
    for (int round = 0; round < rounds; round++) {
        write_small_file();
        size_t flips = 1 + kv_test_random(&random) % 4;
        for (size_t i = 0; i < flips; i++) {
            uint64_t draw = kv_test_random(&random);
            static const uint8_t EXTREMES[] = {0, 1, 0x7f, 0x80, 0xff};
            writer.bytes[draw % writer.count] =
                draw >> 63 ? EXTREMES[(draw >> 40) % sizeof EXTREMES] : (uint8_t)(draw >> 32);
        }
        read_everything(gguf_write(&writer, writer.count));
    }
}

/* The header of the real model, and a hole where its data is. */
static const char *copy_real_header(size_t header_bytes, off_t file_bytes)
{
    static char path[512];
    snprintf(path, sizeof path, "%s/real.gguf", kv_test_folder());
    int from = open(kv_test_model(), O_RDONLY), to = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    assert_true(from >= 0 && to >= 0);
    char *header = malloc(header_bytes);
    assert_int_equal(read(from, header, header_bytes), header_bytes);
    assert_int_equal(write(to, header, header_bytes), header_bytes);
    assert_int_equal(ftruncate(to, file_bytes), 0);
    free(header);
    close(from);
    close(to);
    return path;
}

static void flipped_and_cut_real_headers_do_no_harm(void **state)
{
    (void)state;
    struct stat model;
    assert_int_equal(stat(kv_test_model(), &model), 0);
    size_t header_bytes = 2u << 20; /* the metadata is 1.8 MB */
    const char *path = copy_real_header(header_bytes, model.st_size);
    int fd = open(path, O_RDWR);
    uint64_t random = kv_test_seed();
    int rounds = kv_test_long() ? 5000 : 100;
    for (int round = 0; round < rounds; round++) {
        uint64_t draw = kv_test_random(&random);
        /* Half of the flips near the front, where the counts are. */
        off_t at = (off_t)(draw % (draw >> 63 ? header_bytes : 2048));
        uint8_t was, now = (uint8_t)(draw >> 40);
        assert_int_equal(pread(fd, &was, 1, at), 1);
        assert_int_equal(pwrite(fd, &now, 1, at), 1);
        read_everything(path);
        assert_int_equal(pwrite(fd, &was, 1, at), 1);
    }
    kv_gguf_t *gguf;
    kv_error_t error;
    assert_int_equal(kv_gguf_open(path, &gguf, &error), KV_OK);
    kv_gguf_close(gguf);
    for (int round = 0; round < rounds; round++) {
        assert_int_equal(ftruncate(fd, (off_t)(kv_test_random(&random) % header_bytes)), 0);
        assert_int_equal(kv_gguf_open(path, &gguf, &error), KV_INVALID);
        copy_real_header(header_bytes, model.st_size);
    }
    close(fd);
}

static void the_real_model_is_read(void **state)
{
    (void)state;
    kv_gguf_t *gguf;
    kv_error_t error;
    assert_int_equal(kv_gguf_open(kv_test_model(), &gguf, &error), KV_OK);
    static const struct {
        const char *key;
        uint32_t value;
    } NUMBERS[] = {{"llama.block_count", 30}, {"llama.context_length", 8192},
        {"llama.embedding_length", 576}, {"llama.attention.head_count", 9},
        {"llama.attention.head_count_kv", 3}, {"tokenizer.ggml.eos_token_id", 2}};
    for (size_t i = 0; i < sizeof NUMBERS / sizeof NUMBERS[0]; i++) {
        uint32_t value = 0;
        assert_int_equal(kv_gguf_u32(gguf, NUMBERS[i].key, &value, &error), KV_OK);
        assert_int_equal(value, NUMBERS[i].value);
    }
    kv_gguf_string_t *tokens;
    size_t count = 0;
    assert_int_equal(kv_gguf_strings(gguf, "tokenizer.ggml.tokens", &tokens, &count, &error), 0);
    assert_int_equal(count, 49152);
    free(tokens);
    const kv_gguf_tensor_t *tensor;
    assert_int_equal(kv_gguf_tensor(gguf, "token_embd.weight", &tensor, &error), KV_OK);
    assert_int_equal(tensor->type, KV_TENSOR_Q8_0);
    assert_int_equal(tensor->bytes, 49152 * 576 / 32 * 34);
    assert_int_equal(kv_gguf_tensor(gguf, "blk.29.ffn_down.weight", &tensor, &error), KV_OK);
    assert_int_equal(tensor->type, KV_TENSOR_Q4_1);
    kv_gguf_close(gguf);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(values_come_back),
        cmocka_unit_test(a_wrong_question_is_answered),
        cmocka_unit_test(lies_are_named),
        cmocka_unit_test(tensors_stay_in_the_file),
        cmocka_unit_test(a_foreign_tensor_type_waits_until_it_is_asked_for),
        cmocka_unit_test(a_file_cut_anywhere_is_refused),
        cmocka_unit_test(flipped_bytes_of_a_small_file_do_no_harm),
        cmocka_unit_test(flipped_and_cut_real_headers_do_no_harm),
        cmocka_unit_test(the_real_model_is_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
