import django.db.models.deletion
import django.utils.timezone
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("openai_api", "0005_idempotency")]

    operations = [
        migrations.AddField(
            "conversation",
            "used_at",
            models.DateTimeField(db_index=True, default=django.utils.timezone.now, editable=False),
        ),
        migrations.AlterField(
            "conversationitem", "item_id", models.CharField(db_index=True, max_length=64)
        ),
        migrations.CreateModel(
            "StoredItem",
            [
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("item_id", models.CharField(db_index=True, max_length=64)),
                (
                    "response",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="items",
                        to="openai_api.storedresponse",
                    ),
                ),
            ],
        ),
    ]
