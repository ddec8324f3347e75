"""Transformers: the learning rate of a `Trainer`, and a record of the one that each step used."""

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

import lrfinder
from lrfinder.integrations import transformers as lrt

if __name__ == "__main__":
    torch.manual_seed(0)
    tokens = torch.randint(0, 16, (256, 8))
    data = [{"input_ids": row, "labels": int(row[0] >= 8)} for row in tokens]
    config = BertConfig(
        vocab_size=16,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    arguments = TrainingArguments(
        "output", num_train_epochs=2, weight_decay=0.01, report_to="none", save_strategy="no"
    )
    with lrfinder.MlflowRecorder(experiment="transformers") as recorder:
        trainer = Trainer(
            model=BertForSequenceClassification(config),
            args=arguments,
            train_dataset=data,
            callbacks=[lrt.GroupLRCallback(recorder)],
        )
        result = lrt.range_test(trainer, one_lr=True)  # decay and no decay: one learning rate
        print(result)
        arguments.learning_rate = result.suggestion.lrs["all"]
        trainer.train()
