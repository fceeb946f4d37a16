"""OpenAI's own client, unchanged: chat and text completions, whole and streamed, from threads and
from coroutines. It checks each answer against its types (_strict_response_validation), but for the
events of text completions, whose finish_reason is null before the last one at OpenAI too."""
import asyncio
import unittest

import openai

import service


def client(strict=True):
    return openai.OpenAI(base_url=service.endpoint + "/v1", api_key="none", max_retries=0,
                         timeout=service.ANSWER_LIMIT_S, _strict_response_validation=strict)


def async_client(strict=True):
    return openai.AsyncOpenAI(base_url=service.endpoint + "/v1", api_key="none", max_retries=0,
                              timeout=service.ANSWER_LIMIT_S, _strict_response_validation=strict)


def asked(text, **fields):
    return {"model": service.model, "messages": [{"role": "user", "content": text}],
            "max_tokens": 12, "temperature": 0, **fields}


def completed(prompt, **fields):
    return {"model": service.model, "prompt": prompt, "max_tokens": 12, "temperature": 0, **fields}


class Models(unittest.TestCase):
    def test_list(self):
        with client() as api:
            models = api.models.list().data
        self.assertEqual([model.id for model in models], [service.model])
        self.assertEqual(models[0].object, "model")


class Chat(unittest.TestCase):
    def test_whole(self):
        with client() as api:
            answer = api.chat.completions.create(**asked("Name a colour."))
        self.assertEqual((answer.object, answer.model), ("chat.completion", service.model))
        choice = answer.choices[0]
        self.assertEqual((len(answer.choices), choice.index), (1, 0))
        self.assertEqual(choice.message.role, "assistant")
        self.assertTrue(choice.message.content)
        self.assertIn(choice.finish_reason, ("stop", "length"))
        self.assertEqual(answer.usage.total_tokens,
                         answer.usage.prompt_tokens + answer.usage.completion_tokens)
        self.assertTrue(1 <= answer.usage.completion_tokens <= 12)

    def test_streamed_is_what_whole_is(self):
        fields = asked(service.prompt())
        with client() as api:
            whole = api.chat.completions.create(**fields)
            events = list(api.chat.completions.create(
                **fields, stream=True, stream_options={"include_usage": True}))
        pieces = [event.choices[0] for event in events if event.choices]
        self.assertEqual(pieces[0].delta.role, "assistant")
        self.assertEqual("".join(piece.delta.content or "" for piece in pieces),
                         whole.choices[0].message.content)
        self.assertEqual([piece.finish_reason for piece in pieces if piece.finish_reason],
                         [whole.choices[0].finish_reason])
        self.assertEqual(len({event.id for event in events}), 1)
        usages = [event.usage for event in events if event.usage]
        self.assertEqual(len(usages), 1)
        self.assertIs(events[-1].usage, usages[0])
        self.assertEqual(events[-1].choices, [])
        self.assertEqual(usages[0].completion_tokens, whole.usage.completion_tokens)

    def test_a_stream_without_usage_has_none(self):
        with client() as api:
            events = list(api.chat.completions.create(**asked("Hello"), stream=True))
        self.assertTrue(all(event.usage is None and event.choices for event in events))

    def test_the_stream_helper(self):
        """client.chat.completions.stream puts the pieces together itself, and takes an answer that
        ran out of tokens for an error."""
        fields = asked("Name two colours.", stop=[" "])
        with client() as api, api.chat.completions.stream(**fields) as stream:
            texts = [event.content for event in stream if event.type == "content.done"]
            whole = stream.get_final_completion()
        self.assertEqual(texts, [whole.choices[0].message.content])
        self.assertTrue(texts[0])

    def test_coroutines(self):
        fields = asked(service.prompt())

        async def ask():
            async with async_client() as api:
                whole = await api.chat.completions.create(**fields)
                stream = await api.chat.completions.create(**fields, stream=True)
                text = ""
                async for event in stream:
                    text += event.choices[0].delta.content or ""
                both = await asyncio.gather(*[
                    api.chat.completions.create(**asked(f"{number}, and the next number?"))
                    for number in range(4)])
                return whole.choices[0].message.content, text, both
        whole, text, both = asyncio.run(ask())
        self.assertEqual(text, whole)
        self.assertEqual(len({answer.id for answer in both}), 4)

    def test_roles_parts_and_turns(self):
        with client() as api:
            first = api.chat.completions.create(
                model=service.model, max_completion_tokens=8, temperature=0, messages=[
                    {"role": "developer", "content": "Answer briefly."},
                    {"role": "user", "content": [{"type": "text", "text": "Say "},
                                                 {"type": "text", "text": "hello."}]}])
            second = api.chat.completions.create(
                model=service.model, max_completion_tokens=8, temperature=0, messages=[
                    {"role": "system", "content": "Answer briefly."},
                    {"role": "user", "content": "Say hello."}])
        self.assertEqual(first.choices[0].message.content, second.choices[0].message.content)
        self.assertEqual(first.usage.prompt_tokens, second.usage.prompt_tokens)

    def test_stop_and_seed(self):
        warm = {"temperature": 1.5, "top_p": 0.9, "seed": 4711, "max_tokens": 20}
        fields = asked("Tell me a story.", **warm)
        with client() as api:
            one, two = (api.chat.completions.create(**fields).choices[0] for _ in range(2))
            text = one.message.content
            stop = text[len(text) // 2:][:4]
            cut = api.chat.completions.create(**fields, stop=[stop]).choices[0]
        self.assertEqual(text, two.message.content)
        self.assertEqual(cut.message.content, text[:text.index(stop)])
        self.assertEqual(cut.finish_reason, "stop")

    def test_a_client_that_leaves_its_stream(self):
        with client() as api:
            stream = api.chat.completions.create(
                **asked("Tell me a long story.", max_tokens=400), stream=True)
            next(iter(stream))
            stream.close()
            self.assertTrue(api.chat.completions.create(**asked("Hello")).choices)


class Cache(unittest.TestCase):
    def test_the_second_ask_says_what_it_found(self):
        fields = asked(service.prompt(150))
        with client() as api:
            first = api.chat.completions.create(**fields)
            raw = api.chat.completions.with_raw_response.create(**fields)
            second = raw.parse()
            events = list(api.chat.completions.create(
                **fields, stream=True, stream_options={"include_usage": True}))
        prompt_tokens = first.usage.prompt_tokens
        for usage in (second.usage, events[-1].usage):
            self.assertEqual(usage.prompt_tokens, prompt_tokens)
            self.assertGreaterEqual(usage.prompt_tokens_details.cached_tokens,
                                    prompt_tokens - 2 * service.BLOCK_TOKENS)
            self.assertLess(usage.prompt_tokens_details.cached_tokens, prompt_tokens)
        # The template's own first tokens may be there from another prompt.
        self.assertLess(first.usage.prompt_tokens_details.cached_tokens, prompt_tokens / 2)
        self.assertEqual(int(raw.headers["x-kvist-hit-tokens"]),
                         second.usage.prompt_tokens_details.cached_tokens)
        self.assertEqual(first.choices[0].message.content, second.choices[0].message.content)

    def test_the_extension_passes_through(self):
        """extra_body is how the client lets a server's own fields through."""
        text = service.prompt(100)
        with client() as api:
            def cached(**kvist):
                answer = api.chat.completions.create(**asked(text), extra_body={"kvist": kvist})
                return answer.usage.prompt_tokens_details.cached_tokens
            cached()
            self.assertEqual(cached(cache_mode="bypass"), 0)
            self.assertEqual(cached(salt="a tenant of its own"), 0)
            self.assertGreater(cached(), 0)


class Completions(unittest.TestCase):
    def test_whole_streamed_and_tokens(self):
        fields = completed("Once upon a time")
        with client(strict=False) as api:
            whole = api.completions.create(**fields)
            events = list(api.completions.create(
                **fields, stream=True, stream_options={"include_usage": True}))
            single = api.completions.create(**completed([[1, 100, 200, 300]]))
        self.assertEqual((whole.object, whole.choices[0].index), ("text_completion", 0))
        self.assertEqual("".join(choice.text for event in events for choice in event.choices),
                         whole.choices[0].text)
        self.assertEqual(events[-1].usage.completion_tokens, whole.usage.completion_tokens)
        self.assertEqual(single.usage.prompt_tokens, 4)

    def test_coroutines(self):
        fields = completed("The capital of France is")

        async def ask():
            async with async_client(strict=False) as api:
                whole = await api.completions.create(**fields)
                text = ""
                async for event in await api.completions.create(**fields, stream=True):
                    text += event.choices[0].text
                return whole.choices[0].text, text
        whole, text = asyncio.run(ask())
        self.assertEqual(text, whole)


class Errors(unittest.TestCase):
    def refused(self, kind, **fields):
        with client() as api, self.assertRaises(kind) as caught:
            api.chat.completions.create(**asked("Hello", **fields))
        self.assertTrue(caught.exception.message)
        return caught.exception

    def test_a_field_that_is_wrong_is_named(self):
        for fields in ({"temperature": 3}, {"top_p": 0}, {"max_tokens": -1}, {"stop": [""]},
                       {"seed": "x"}, {"response_format": {"type": "json_object"}}):
            with self.subTest(fields):
                error = self.refused(openai.BadRequestError, **fields)
                self.assertEqual(error.status_code, 400)
                self.assertEqual(error.type, "invalid_request_error")
                self.assertTrue(error.param.startswith(next(iter(fields))), error.param)
                self.assertIn(next(iter(fields)), error.message)

    def test_a_model_that_is_not_there(self):
        error = self.refused(openai.NotFoundError, model="another")
        self.assertEqual((error.code, error.param), ("model_not_found", "model"))

    def test_a_prompt_beyond_the_context(self):
        with client() as api, self.assertRaises(openai.BadRequestError) as caught:
            api.chat.completions.create(**asked(service.prompt(9000)))
        self.assertEqual(caught.exception.code, "context_length_exceeded")

    def test_a_path_that_is_not_there(self):
        with client() as api, self.assertRaises(openai.NotFoundError) as caught:
            api.embeddings.create(model=service.model, input="x")
        self.assertIn("/v1/embeddings", caught.exception.message)

    def test_a_body_that_is_too_large(self):
        with client() as api, self.assertRaises(openai.APIStatusError) as caught:
            api.chat.completions.create(**asked("x" * 9_000_000))
        self.assertEqual(caught.exception.status_code, 413)

    def test_coroutines_hear_it_too(self):
        async def ask():
            async with async_client() as api:
                await api.chat.completions.create(**asked("Hello", temperature=-1), stream=True)
        with self.assertRaises(openai.BadRequestError) as caught:
            asyncio.run(ask())
        self.assertEqual(caught.exception.param, "temperature")

    def test_a_server_that_is_not_there(self):
        with openai.OpenAI(base_url="http://127.0.0.1:9/v1", api_key="none",
                           max_retries=0) as api, self.assertRaises(openai.APIConnectionError):
            api.models.list()
