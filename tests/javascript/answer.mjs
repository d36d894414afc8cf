// Opens a bundle with transformers.js, in Node and in a browser, and answers with ids, pixels, embeddings and scores.

export async function answer(transformers, request) {
  const { AutoProcessor, AutoTokenizer, RawImage, SiglipTextModel, SiglipVisionModel, pipeline } = transformers;
  const tokenizer = await AutoTokenizer.from_pretrained(request.bundle);
  const processor = await AutoProcessor.from_pretrained(request.bundle);
  const image = await RawImage.read(request.image);
  const { pixel_values } = await processor(image);
  const result = { ids: [], pixels: Array.from(pixel_values.data), variants: {} };
  for (const text of request.texts) {
    result.ids.push(Array.from(tokenize(tokenizer, text).input_ids.data, Number));
  }
  for (const dtype of request.dtypes) {
    const options = { dtype, device: request.device };
    const vision = await SiglipVisionModel.from_pretrained(request.bundle, options);
    const text_model = await SiglipTextModel.from_pretrained(request.bundle, options);
    const texts = [];
    for (const text of request.texts) {  // one by one: int8 vectors depend on the others of a batch
      texts.push(Array.from((await text_model(tokenize(tokenizer, text))).pooler_output.data));
    }
    const classify = await pipeline('zero-shot-image-classification', request.bundle, options);
    const scores = {};
    for (const text of request.texts) {
      const [{ score }] = await classify(image, [text], { hypothesis_template: '{}' });
      scores[text] = score;
    }
    const images = Array.from((await vision({ pixel_values })).pooler_output.data);
    result.variants[dtype] = { image: images, texts, scores };
  }
  return result;
}

function tokenize(tokenizer, text) {
  return tokenizer([text], { padding: 'max_length', truncation: true });
}
